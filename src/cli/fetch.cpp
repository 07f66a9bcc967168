// distil-xlstm fetch: models and data sets onto this machine.
#include "io/fetch.h"

#include "base/error.h"
#include "base/signals.h"
#include "cli/commands.h"

namespace distil_xlstm::cli {

void add_fetch_command(CLI::App& app) {
  auto request = std::make_shared<io::FetchRequest>();
  CLI::App* command = app.add_subcommand("fetch", "Bring a model or a data set onto this machine and print where it lies");
  command->add_option("NAME", request->name, "stories260K, smollm2-135m-instruct, or a Hugging Face repository: org/name[@revision]")
      ->required();
  command->add_flag("--dataset", request->is_dataset, "The repository holds a data set");
  command->add_option("--files", request->globs, "Only files that match this pattern, e.g. 'data/*.parquet'; may be given several times")
      ->type_name("GLOB")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->footer(
      "HF_ENDPOINT, HF_TOKEN and HF_HOME are honoured; built-ins in Python packages come from pip's package index (PIP_INDEX_URL).\n"
      "Interrupted downloads continue; every file is checked. They lie below DISTIL_XLSTM_CACHE, else HF_HOME/distil-xlstm, else\n"
      "~/.cache/distil-xlstm.");
  command->callback([request] {
    const SignalGuard guard;
    fmt::print("{}\n", io::fetch(*request).string());
  });
}

}  // namespace distil_xlstm::cli
