# make demo, make test: everything a fresh machine needs is installed by tools/setup.
BUILD ?= build/release
JOBS  ?= $(shell nproc)

.PHONY: demo demo-smollm2 test test-oracles test-gpu build cuda format check-format lint layout clean

build:
	@env=$$(tools/setup) && { [ -f $(BUILD)/build.ninja ] || cmake --preset release -DDISTIL_XLSTM_ENV_DIR=$$env > /dev/null; } \
	  && cmake -DDISTIL_XLSTM_ENV_DIR=$$env $(BUILD) > /dev/null && ninja -C $(BUILD) -j $(JOBS)

demo: build
	@tools/demo $(BUILD)/distil-xlstm

demo-smollm2: build
	@tools/demo_smollm2 $(BUILD)/distil-xlstm

test: build
	@tools/run_tests $(BUILD)

# Live comparisons with transformers, xlstm, tokenizers, tensorboard: needs the whole environment.
test-oracles: build
	@env=$$(CUDA=1 tools/setup) && DISTIL_XLSTM_BUILD=$(BUILD) $$env/bin/python tools/run_oracles

cuda:
	@env=$$(CUDA=1 tools/setup) && { [ -f build/cuda/build.ninja ] || cmake --preset cuda -DDISTIL_XLSTM_ENV_DIR=$$env > /dev/null; } \
	  && ninja -C build/cuda -j $(JOBS)

format:
	@env=$$(CUDA=1 tools/setup) && git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $$env/bin/clang-format -i

check-format:
	@env=$$(CUDA=1 tools/setup) && git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $$env/bin/clang-format --dry-run --Werror

lint:
	@tools/lint $(BUILD)

layout:
	@python3 tools/check_layout

clean:
	rm -rf build
