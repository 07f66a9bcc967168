#include "cli/options/bench.h"

#include <memory>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/option_checks.h"

namespace distil_xlstm::cli {

const std::vector<std::string>& bench_part_names() {
  static const std::vector<std::string> names = {"teacher_forward", "layer_norm",     "convolution", "slstm_gates", "slstm",
                                                 "feed_forward",    "qkv_projection", "mlstm_gates", "mlstm",       "multi_head_norm",
                                                 "skip_gate",       "head_loss",      "step"};
  return names;
}

void add_bench_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "bench", "Times the parts of a training step and the step itself, against their floors, on random weights: no files needed");
  auto options = std::make_shared<BenchOptions>();
  command->add_option("part", options->parts, "Parts to measure: " + join(bench_part_names(), ", "))
      ->check(CLI::IsMember(bench_part_names()))
      ->default_str("all");
  command->add_option("--step-rows", options->step_rows, "Rows of the step's micro-batch, several sizes one after the other")
      ->delimiter(',')
      ->check(at_least(1))
      ->default_str("train.micro_batch_size");
  command->add_option("--stage", options->stage, "Steps of this stage of the method, such as alignment")
      ->default_str("the first that runs the whole student");
  command->add_option("--json", options->json_path, "Write the results here too")->check(output_file());
  command
      ->add_option("--trace", options->trace_path,
                   "Write a trace of one step (Chrome's format, for Perfetto) of the smallest size here, and print where its time goes")
      ->type_name("FILE");
  options->run.add_to(*command);
  command->footer(
      "Without --config or --preset: the paper's student, with the geometry of qwen2.5-1.5b as teacher on a GPU, and of smollm2-135m\n"
      "with 2 x 256 tokens on a CPU. --teacher takes these two names, a config.json or a model. Rows are whole documents.");
  command->callback([options] { compute_commands().run_bench(*options); });
}

}  // namespace distil_xlstm::cli
