// What the table refuses, so that nobody behind it checks again, and what a resumed run may change.
#include "config/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "config/toml.h"

namespace distil_xlstm::config {
namespace {

using ::testing::HasSubstr;

TEST(Settings, RefuseWhatNoRunCanUse) {
  const std::vector<std::array<const char*, 3>> cases = {
      {"distill.alpha.start", "1.2", "distill.alpha.start = 1.2: must be a number >= 0 and <= 1"},
      {"distill.alpha.final", "-0.1", "distill.alpha.final = -0.1: must be"},
      {"distill.alpha.start", "nan", "distill.alpha.start = nan: must be"},
      {"distill.alpha.decay", "1.5", "distill.alpha.decay = 1.5: must be"},
      {"distill.alpha.decay", "-0.1", "distill.alpha.decay = -0.1: must be"},
      {"distill.alpha.decay_mode", "divide", "distill.alpha.decay_mode = \"divide\": must be \"multiply\" or \"subtract\""},
      {"distill.beta.start", "-0.1", "distill.beta.start = -0.1: must be"},
      {"distill.temperature.final", "0.0", "distill.temperature.final = 0.0: must be a number > 0"},
      {"distill.temperature.start", "nan", "distill.temperature.start = nan: must be"},
      {"distill.combine", "convx", "must be \"convex\" or \"additive\" (did you mean 'convex'?)"},
      {"distill.divergence", "kl", "distill.divergence = \"kl\": must be \"forward_kl\", \"reverse_kl\" or \"jsd\""},
      {"distill.jsd_beta", "1.0", "distill.jsd_beta = 1.0: must be a number > 0 and < 1"},
      {"distill.jsd_beta", "0.0", "distill.jsd_beta = 0.0: must be"},
      {"distill.stage1_fraction", "1.0", "distill.stage1_fraction = 1.0: must be a number > 0 and < 1"},
      {"distill.stage1_fraction", "0", "distill.stage1_fraction = 0: must be"},
      {"distill.temperature_max", "0.5", "distill.temperature_max = 0.5: must be a number >= 1"},
      {"distill.boundary", "epochs", "(did you mean 'epoch'?)"},
      {"distill.vocabulary", "tokeniser", "(did you mean 'tokenizer'?)"},
      {"distill.alignment.kind", "averge", "(did you mean 'average'?)"},
      {"distill.alignment.distance", "l2", "distill.alignment.distance = \"l2\": must be"},
      {"distill.alignment.scope", "token", "distill.alignment.scope = \"token\": must be"},
      {"distill.alignment.every_steps", "0", "distill.alignment.every_steps = 0: must be an integer >= 1"},
      {"data.document_isolation", "ful", "\"ful\": must be \"full\", \"loss\" or \"none\" (did you mean 'full'?)"},
      {"optimizer.schedule", "cosin", "(did you mean 'cosine'?)"},
      {"student.num_blocks", "double", "must be \"half\" or \"same\", or an integer >= 1"},
      {"student.num_heads", "ceil5", "\"ceil4\" or \"ceil4_div4\", or an integer >= 1 (did you mean 'ceil4'?)"},
      {"student.slstm_at", "some", "must be \"alternate\", \"all\", \"none\", or a list of block indices"},
      {"student.ffn_act_fn", "gelus", "(did you mean 'gelu'?)"},
      {"student.bias_init", "ones", "student.bias_init = \"ones\": must be"},
      {"student.recurrent_weight_init", "wang", "must be \"zeros\" or \"standard\""},
      {"student.slstm_layout", "triton", "must be \"cuda\" or \"vanilla\""},
  };
  for (const auto& [key, text, message] : cases) {
    try {
      (void)load_config_text("", "run.toml", {{key, text, "--set"}});
      ADD_FAILURE() << key << " = " << text << " was taken";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
  }
}

// Names of registries are theirs to refuse, once: others may add to them.
TEST(Settings, NamesOfRegistriesAreText) {
  for (const char* key : {"student.kind", "distill.method", "distill.alpha.schedule", "distill.temperature.schedule"}) {
    const auto* setting = find_setting(key);
    EXPECT_FALSE(setting->names.empty()) << key;
    RunConfig config;
    EXPECT_EQ(setting->set(config, "from-outside"), "") << key;
    EXPECT_EQ(setting->get(config), "from-outside") << key;
    EXPECT_NE(setting->set(config, 3), "") << key;
  }
}

TEST(Settings, EveryNameThatIsListedIsTaken) {
  for (const auto& setting : all_settings()) {
    for (const auto& name : setting.names) {
      RunConfig config;
      EXPECT_EQ(setting.set(config, name), "") << setting.key;
      EXPECT_EQ(setting.get(config), name) << setting.key;
      EXPECT_THAT(setting.values, HasSubstr("\"" + name + "\"")) << setting.key;
    }
  }
}

TEST(Settings, SayWhatMayChangeOnResume) {
  const std::map<std::string, OnResume> others = {{"output", OnResume::may_change},
                                                  {"train.device", OnResume::may_change},
                                                  {"train.checkpointing", OnResume::may_change},
                                                  {"train.log_every_steps", OnResume::may_change},
                                                  {"train.save_every_steps", OnResume::may_change},
                                                  {"train.keep_checkpoints", OnResume::may_change},
                                                  {"train.max_skipped_steps", OnResume::may_change},
                                                  {"eval.every_steps", OnResume::may_change},
                                                  {"teacher.precision", OnResume::may_change_after_failure},
                                                  {"train.precision", OnResume::may_change_after_failure},
                                                  {"optimizer.learning_rate", OnResume::may_change_after_failure},
                                                  {"distill.convert.orient_learning_rate", OnResume::may_change_after_failure},
                                                  {"distill.convert.align_learning_rate", OnResume::may_change_after_failure},
                                                  {"distill.convert.state_passing_learning_rate", OnResume::may_change_after_failure},
                                                  {"optimizer.initial_loss_scale", OnResume::may_change_after_failure}};
  size_t num_others = 0;
  for (const auto& setting : all_settings()) {
    const auto found = others.find(setting.key);
    const auto expected = found == others.end() ? OnResume::must_stay : found->second;
    num_others += found == others.end() ? 0 : 1;
    EXPECT_EQ(setting.on_resume, expected) << setting.key;
    EXPECT_EQ(setting.may_change(/*has_failed=*/false), expected == OnResume::may_change) << setting.key;
    EXPECT_EQ(setting.may_change(/*has_failed=*/true), expected != OnResume::must_stay) << setting.key;
  }
  EXPECT_EQ(num_others, others.size());
}

}  // namespace
}  // namespace distil_xlstm::config
