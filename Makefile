# make demo, make test: everything a fresh machine needs is installed by tools/setup. DEMO holds options of tools/demo.
BUILD ?= build/release
JOBS  ?= $(shell nproc)

.PHONY: demo demo-smollm2 test test-oracles build build-tests cuda format check-format lint layout clean

# With a GPU (or CUDA=1) the CUDA library is built beside the program; the program itself is the same. It is compiled for this machine's
# GPUs, or for those that CUDA_ARCHITECTURES names ("80-real;90a-real"); empty, it clears what an earlier call left in the build folder.
cuda_targets = "-DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)"
define BUILD_TARGETS
@env=$$(tools/setup) && case $$env in */full-*) cuda=ON ;; *) cuda=OFF ;; esac \
  && cmake --preset release -DDISTIL_XLSTM_ENV_DIR=$$env -DDISTIL_XLSTM_CUDA=$$cuda $(cuda_targets) > build.log 2>&1 || { cat build.log; exit 1; } \
  && { sed -n 's/^-- \(CUDA library for .*\)/\1/p' build.log; rm -f build.log; } && ninja -C $(BUILD) -j $(JOBS)
endef

build:
	$(BUILD_TARGETS) program

build-tests:
	$(BUILD_TARGETS)

demo: build
	@tools/demo $(BUILD)/distil-xlstm $(DEMO)

demo-smollm2: build
	@tools/demo_smollm2 $(BUILD)/distil-xlstm

test: build-tests
	@tools/run_tests $(BUILD)
	@tools/run_cli_cases $(BUILD)

# Live comparisons with transformers, xlstm, tokenizers, tensorboard, lm_eval: needs the whole environment. ORACLES="test_teacher ..." picks some.
test-oracles: build-tests
	@env=$$(CUDA=1 tools/setup) && DISTIL_XLSTM_BUILD=$(BUILD) $$env/bin/python tools/run_oracles $(ORACLES)

# The CUDA library and the kernels' checks, for one architecture (90a, or CUDA_ARCHITECTURES): all CUDA code compiles, GPU or not.
cuda:
	@env=$$(CUDA=1 tools/setup) && cmake --preset cuda -DDISTIL_XLSTM_ENV_DIR=$$env $(if $(CUDA_ARCHITECTURES),$(cuda_targets)) > /dev/null \
	  && ninja -C build/cuda -j $(JOBS) distil_xlstm_cuda kernel_checks

format:
	@env=$$(CUDA=1 tools/setup) && git ls-files -co --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $$env/bin/clang-format -i

check-format:
	@env=$$(CUDA=1 tools/setup) && git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $$env/bin/clang-format --dry-run --Werror

lint:
	@tools/lint $(BUILD)

layout:
	@python3 tools/check_layout

clean:
	rm -rf build
