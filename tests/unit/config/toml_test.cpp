#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "base/error.h"
#include "config/presets.h"
#include "config/toml.h"
#include "support/source_directory.h"

namespace distil_xlstm::config {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string problems_of(const std::string& text, const std::vector<Override>& overrides = {}) {
  try {
    load_config_text(text, "run.toml", overrides);
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << text;
  return "";
}

TEST(Toml, DefaultsStandWhenNothingIsSaid) {
  const auto loaded = load_config_text("", "run.toml");
  EXPECT_EQ(to_toml(loaded.run), to_toml(RunConfig{}));
  EXPECT_TRUE(loaded.sources.empty());
}

std::string dotted(int parts) {
  std::string key = "a";
  for (int i = 1; i < parts; ++i) key += ".a";
  return key;
}

TEST(Toml, BoundsHowDeepTablesGo) {
  const std::string message = "run.toml:2: a key of more than 32 parts";
  EXPECT_EQ(problems_of("seed = 1\n" + dotted(200'000) + " = 1"), message);
  EXPECT_EQ(problems_of("seed = 1\n[" + dotted(200'000) + "]"), message);
  EXPECT_EQ(problems_of("seed = 1\n[[" + dotted(33) + "]]"), message);
  EXPECT_EQ(problems_of("seed = 1\nteacher = { model = 'x', " + dotted(33) + " = 1 }"), message);
  EXPECT_EQ(problems_of("seed = 1\n\"a\" . 'b' ." + dotted(31) + " = 1"), message);
  EXPECT_EQ(problems_of("output = \"\"\"\n." + dotted(99) + "\"\"\"\n" + dotted(33) + " = 1"), "run.toml:3: a key of more than 32 parts");
  EXPECT_THAT(problems_of(dotted(32) + " = 1"), HasSubstr("unknown key 'a'"));
  EXPECT_THAT(problems_of("seed = " + std::string(200'000, '[')), HasSubstr("nested value depth"));
  std::string tables = "1";
#ifdef __SANITIZE_THREAD__
  constexpr int kLevels = 5;  // it keeps the stack of every allocation, each as deep as the tables
#else
  constexpr int kLevels = 60;
#endif
  for (int i = 0; i < kLevels; ++i) tables = "{ " + dotted(32) + " = " + tables + " }";
  EXPECT_THAT(problems_of("x = " + tables), HasSubstr("unknown key 'x'"));
  EXPECT_THAT(problems_of("", {{"seed", std::string(100'000, '['), "--set"}, {dotted(100'000), "1", "--set"}}),
              HasSubstr("--set: unknown key"));
}

// Found by the fuzzer: the parser reads on to the end of such a word, where a letter beyond ASCII is undefined behaviour in it.
TEST(Toml, AQuoteInAWordBeginsNoString) {
  for (const char* text : {"seed = 0.w\"eʮe\"", "a\"ʮ\" = 1", "seed = \"a\"\"ʮ\"", "[data]'ʮ'"})
    EXPECT_THAT(problems_of(text), HasSubstr("a quote stands in the middle of a word")) << text;
  EXPECT_THAT(problems_of("", {{"seed", "0.w\"eʮe\"", "--set"}}), HasSubstr("--set: seed")) << "plain text there";
  EXPECT_EQ(load_config_text("\"teacher\".'model'=\"m\"\n[ \"data\" ]\n'train'= 'a' # \"b\"\n", "run.toml").run.data.train, "a");
}

// Found by the fuzzer: with NDEBUG the parser's assertion there was undefined behaviour.
TEST(Toml, KeysBeginAsKeysMay) {
  for (const char* text : {"sched\xc3\xa9 = 1", "[data]\ncontext_length = 4 \xe2\x80\xa8", "[@data]", "@seed = 1",
                           "teacher = { @model = 1 }", "[teacher.@]", "[]", "= 1"})
    EXPECT_THAT(problems_of(text), HasSubstr("run.toml:")) << text;
}

TEST(Toml, DotsInTextAndNumbersAreNoParts) {
  const std::string path = "\"" + dotted(99) + "\"";
  EXPECT_EQ(load_config_text("output = " + path, "run.toml").run.output, dotted(99));
  EXPECT_EQ(load_config_text("output = '" + dotted(99) + "' # " + dotted(99), "run.toml").run.output, dotted(99));
  EXPECT_EQ(load_config_text("output = \"\\\"" + dotted(99) + "\"", "run.toml").run.output, "\"" + dotted(99));
  EXPECT_EQ(load_config_text("output = \"\"\"\\\"\"\"" + dotted(99) + "\"\"\"", "run.toml").run.output, "\"\"\"" + dotted(99));
  EXPECT_EQ(load_config_text("output = '''\n" + dotted(99) + "'''", "run.toml").run.output, dotted(99));
  std::string numbers = "0.5";
  for (int i = 0; i < 99; ++i) numbers += ", 0.5";
  EXPECT_THAT(problems_of("[optimizer]\nbetas = [" + numbers + "]"), HasSubstr("optimizer.betas"));
}

TEST(Toml, ReadsEveryKindOfValue) {
  const auto run = load_config_text(R"(
output = "runs/a"
seed = 7
[teacher]
model = "stories260K"
[student]
num_blocks = 5
num_heads = "ceil4_div4"
slstm_at = [3, 1]
[data]
sources = [{ path = "a", weight = 2 }, { path = "b" }, "c"]
[distill]
alpha = 0.3
temperature = { schedule = "linear", start = 4, final = 1.5 }
mse_centered = true
[distill.alignment]
scope = "batch"
[train]
max_tokens = "512M"
[optimizer]
betas = [0.9, 0.95]
)",
                                    "run.toml")
                       .run;
  EXPECT_EQ(run.output, "runs/a");
  EXPECT_EQ(run.seed, 7u);
  EXPECT_EQ(run.teacher.model, "stories260K");
  EXPECT_EQ(std::get<int64_t>(run.student.num_blocks), 5);
  EXPECT_EQ(std::get<HeadsRule>(run.student.num_heads), HeadsRule::ceil4_div4);
  EXPECT_EQ(std::get<std::vector<int64_t>>(run.student.slstm_at), (std::vector<int64_t>{1, 3}));
  ASSERT_EQ(run.data.sources.size(), 3u);
  EXPECT_EQ(run.data.sources[0].weight, 2.0);
  EXPECT_EQ(run.data.sources[1].weight, 1.0);
  EXPECT_EQ(run.data.sources[2].path, "c");
  EXPECT_EQ(run.distill.alpha.schedule, "constant");
  EXPECT_EQ(run.distill.alpha.start, 0.3);
  EXPECT_EQ(run.distill.temperature.schedule, "linear");
  EXPECT_EQ(run.distill.temperature.start, 4.0);
  EXPECT_EQ(run.distill.temperature.final, 1.5);
  EXPECT_EQ(run.distill.temperature.decay, 0.05);
  EXPECT_TRUE(run.distill.mse_centered);
  EXPECT_EQ(run.distill.alignment.scope, AlignmentScope::batch);
  EXPECT_EQ(run.train.max_tokens, 512'000'000);
  EXPECT_EQ(run.optimizer.betas, (std::vector<double>{0.9, 0.95}));
}

TEST(Toml, ReportsAllProblemsTogetherWithTheirLines) {
  const auto message = problems_of(
      "[train]\n"
      "precision = \"fp8\"\n"
      "micro_batch_sise = 4\n"
      "gradient_accumulation_steps = 0\n"
      "[optimizer]\n"
      "warmup_ratio = 1.5\n"
      "betas = [0.9]\n"
      "[modle]\n"
      "x = 1\n");
  EXPECT_THAT(message, HasSubstr("run.toml:2: train.precision = \"fp8\": must be \"auto\", \"fp32\", \"bf16\" or \"fp16\" (did you mean"));
  EXPECT_THAT(message, HasSubstr("run.toml:3: unknown key 'train.micro_batch_sise' (did you mean 'train.micro_batch_size'?)"));
  EXPECT_THAT(message, HasSubstr("run.toml:4: train.gradient_accumulation_steps = 0: must be an integer >= 1"));
  EXPECT_THAT(message, HasSubstr("run.toml:6: optimizer.warmup_ratio = 1.5: must be a number >= 0 and <= 1"));
  EXPECT_THAT(message, HasSubstr("run.toml:7: optimizer.betas = [0.9]: must be two numbers >= 0 and < 1"));
  EXPECT_THAT(message, HasSubstr("run.toml:8: unknown key 'modle'"));
  EXPECT_LT(message.find("run.toml:3"), message.find("run.toml:4")) << "in the order of the file";
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 5);
}

TEST(Toml, FindsAKeyThatStandsInTheWrongSection) {
  EXPECT_THAT(problems_of("[train]\nlearning_rate = 1e-3\n"), HasSubstr("(did you mean 'optimizer.learning_rate'?)"));
  EXPECT_THAT(problems_of("context_length = 8\n"), HasSubstr("(did you mean 'data.context_length'?)"));
}

TEST(Toml, RejectsWrongTypes) {
  EXPECT_THAT(problems_of("seed = -1"), HasSubstr("must be an integer >= 0"));
  EXPECT_THAT(problems_of("seed = 1.5"), HasSubstr("must be an integer"));
  EXPECT_THAT(problems_of("output = 3"), HasSubstr("output = 3: must be text"));
  EXPECT_THAT(problems_of("train = 3"), HasSubstr("train = 3: must be a table"));
  EXPECT_THAT(problems_of("[train]\nmax_steps = \"many\""), HasSubstr("max_steps = \"many\": must be an integer"));
  EXPECT_THAT(problems_of("[optimizer]\nlearning_rate = 0"), HasSubstr("must be a number > 0"));
  EXPECT_THAT(problems_of("[optimizer]\nlearning_rate = nan"), HasSubstr("must be a number > 0"));
  EXPECT_THAT(problems_of("[optimizer]\nlearning_rate = inf"), HasSubstr("must be a number > 0"));
  EXPECT_THAT(problems_of("[optimizer]\nlearning_rate = 1979-05-27"), HasSubstr("dates and times"));
  EXPECT_THAT(problems_of("[student]\nnum_blocks = 0"), HasSubstr("or an integer >= 1"));
  EXPECT_THAT(problems_of("[student]\nnum_heads = \"ceil5\""), HasSubstr("did you mean 'ceil4'"));
  EXPECT_THAT(problems_of("[student]\nslstm_at = [0, 0]"), HasSubstr("names a block twice"));
  EXPECT_THAT(problems_of("[student]\nslstm_at = [-1]"), HasSubstr("must be"));
  EXPECT_THAT(problems_of("[distill]\nmse_centered = 1"), HasSubstr("must be true or false"));
  EXPECT_THAT(problems_of("[distill]\nalpha = \"high\""), HasSubstr("distill.alpha = \"high\": must be a number, or {"));
  EXPECT_THAT(problems_of("[distill]\nalpha = { start = 2 }"), HasSubstr("distill.alpha.start = 2: must be a number >= 0 and <= 1"));
  EXPECT_THAT(problems_of("[distill]\ntemperature = 0"), HasSubstr("distill.temperature.start = 0: must be a number > 0"));
  EXPECT_THAT(problems_of("[distill]\nalpha = { begin = 0.5 }"), HasSubstr("unknown key 'distill.alpha.begin'"));
  EXPECT_THAT(problems_of("[data]\nsources = [{ weight = 1 }]"), HasSubstr("data.sources"));
  EXPECT_THAT(problems_of("[data]\nsources = [{ path = \"a\", weight = 0 }]"), HasSubstr("weights > 0"));
  EXPECT_THAT(problems_of("[train]\ndevice = \"gpu\""), HasSubstr("run.toml:2: train.device = \"gpu\": must be \"auto\""));
  EXPECT_THAT(problems_of("[train]\ndevice = \"cuda:x\""), HasSubstr("\"cuda:N\""));
}

TEST(Toml, NamesTheLineOfASyntaxError) {
  EXPECT_THAT(problems_of("a = 1\nb = = 2\n"), HasSubstr("run.toml:2:"));
}

TEST(Toml, AStudentMayDoWithoutConvolutions) {
  EXPECT_EQ(load_config_text("[student]\nconv1d_kernel_size = 0\n", "run.toml").run.student.conv1d_kernel_size, 0);
  EXPECT_THAT(problems_of("[student]\nconv1d_kernel_size = -1\n"), HasSubstr("conv1d_kernel_size"));
}

TEST(Toml, OneLengthOfTheRun) {
  EXPECT_THAT(problems_of("[train]\nmax_steps = 5\nnum_epochs = 2\n"), HasSubstr("are set together"));
  EXPECT_THAT(problems_of("[data]\ntrain = \"a\"\nsources = [\"b\"]\n"), HasSubstr("set one of them"));
  try {
    load_config_text("", "run.toml", {{"train.max_tokens", "1000", "--max-tokens"}, {"train.max_steps", "5", "--max-steps"}});
    ADD_FAILURE() << "took two lengths";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("train.max_tokens (--max-tokens) and train.max_steps (--max-steps) are set together"));
  }
  // The command line's choice replaces the file's, the file's the preset's.
  const auto run =
      load_config_text("preset = \"paper\"\n[train]\nmax_tokens = 1000\n", "run.toml", {{"train.max_steps", "5", "--max-steps"}}).run;
  EXPECT_EQ(run.train.max_steps, 5);
  EXPECT_EQ(run.train.max_tokens, 0);
  EXPECT_EQ(run.train.num_epochs, 0);
}

TEST(Toml, LaterLayersWinAndSayWhereTheyAre) {
  const auto loaded = load_config_text("preset = \"paper\"\nseed = 3\n[train]\nmicro_batch_size = 2\nprecision = \"fp32\"\n", "run.toml",
                                       {{"train.micro_batch_size", "4", "--micro-batch-size"}, {"output", "7", "--set"}});
  EXPECT_EQ(loaded.run.train.micro_batch_size, 4);
  EXPECT_EQ(loaded.run.train.precision, "fp32");
  EXPECT_EQ(loaded.run.train.gradient_accumulation_steps, 4);
  EXPECT_EQ(loaded.run.output, "7");
  const auto page = describe(loaded);
  EXPECT_THAT(page, ::testing::ContainsRegex("train.micro_batch_size = 4 +# --micro-batch-size\n"));
  EXPECT_THAT(page, ::testing::ContainsRegex("train.precision = \"fp32\" +# run.toml:5\n"));
  EXPECT_THAT(page, ::testing::ContainsRegex("train.gradient_accumulation_steps = 4 +# preset paper\n"));
  EXPECT_THAT(page, ::testing::ContainsRegex("train.log_every_steps = 1 +# default\n"));
}

TEST(Toml, UnknownPreset) {
  EXPECT_THAT(problems_of("preset = \"papr\""), HasSubstr("did you mean 'paper'?"));
}

TEST(Toml, OverridesTakeTomlOrPlainText) {
  const auto run = load_config_text("", "run.toml",
                                    {{"teacher.model", "org/name", "--set"},
                                     {"distill.alpha", "{ schedule = \"cosine\", start = 0.9, final = 0.1 }", "--set"},
                                     {"distill.beta", "0.25", "--beta"},
                                     {"student.slstm_at", "[0, 2]", "--set"},
                                     {"train.max_tokens", "1.5k", "--max-tokens"},
                                     {"data.train", "\"with space\"", "--set"}})
                       .run;
  EXPECT_EQ(run.teacher.model, "org/name");
  EXPECT_EQ(run.distill.alpha.schedule, "cosine");
  EXPECT_EQ(run.distill.alpha.final, 0.1);
  EXPECT_EQ(run.distill.beta.start, 0.25);
  EXPECT_EQ(std::get<std::vector<int64_t>>(run.student.slstm_at), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(run.train.max_tokens, 1500);
  EXPECT_EQ(run.data.train, "with space");
  EXPECT_THAT(problems_of("", {{"train.max_stesp", "3", "--set"}}),
              HasSubstr("--set: unknown key 'train.max_stesp' (did you mean 'train.max_steps'?)"));
  EXPECT_THAT(problems_of("", {{"train.max_steps", "1\nseed = 4", "--set"}}), HasSubstr("train.max_steps"));
}

TEST(Toml, ParsesSetOptions) {
  const auto given = parse_override(" train.max_steps = 10 ");
  EXPECT_EQ(given.key, "train.max_steps");
  EXPECT_EQ(given.text, "10");
  EXPECT_EQ(parse_override("a=b=c").text, "b=c");
  EXPECT_THROW(parse_override("max_steps"), ConfigError);
  EXPECT_THROW(parse_override("=3"), ConfigError);
}

// Random settings through every setter, saved and read again, are the same.
TEST(Toml, SavingReadsBackToTheSame) {
  std::mt19937 random(11);
  const std::vector<std::string> texts = {"plain", "with \"quotes\"", "tab\tline\nend", "back\\slash", "ünïcode 模", "# no comment", "1"};
  for (int round = 0; round < 200; ++round) {
    RunConfig config;
    for (const auto& setting : all_settings()) {
      const std::vector<json> candidates = {json(static_cast<int64_t>(random() % 9 + 1)),
                                            json(std::ldexp(random(), -33)),
                                            json(std::ldexp(random(), -20)),
                                            json(texts[random() % texts.size()]),
                                            json(random() % 2 == 0),
                                            json::array({0, 2, 5}),
                                            json::array({0.1, 0.7}),
                                            json::array({{{"path", "a b"}, {"weight", 0.1}}})};
      if (setting.key == "train.device" || setting.key == "train.max_steps" || setting.key == "train.max_tokens" ||
          setting.key == "data.sources")
        continue;
      setting.set(config, candidates[random() % candidates.size()]);
    }
    const auto text = to_toml(config);
    const auto again = load_config_text(text, "saved.toml").run;
    ASSERT_EQ(to_toml(again), text);
    ASSERT_EQ(to_json(again), to_json(config));
  }
}

TEST(Presets, PaperIsThePapersExperiment) {
  const auto run = load_config({.file = std::nullopt, .preset = "paper", .overrides = {}}).run;
  EXPECT_EQ(std::get<int64_t>(run.student.num_blocks), 6);
  EXPECT_EQ(std::get<HeadsRule>(run.student.num_heads), HeadsRule::ceil4);
  EXPECT_EQ(run.data.context_length * run.train.micro_batch_size * run.train.gradient_accumulation_steps, 16384);
  EXPECT_EQ(run.train.num_epochs, 10);
  EXPECT_EQ(run.train.precision, "fp16");
  EXPECT_EQ(run.distill.method, "delta-frobenius");
  EXPECT_EQ(run.distill.alpha.schedule, "delta-paper");
  EXPECT_EQ(run.distill.alpha.start, 0.8);
  EXPECT_EQ(run.distill.temperature.final, 1.0);
  EXPECT_EQ(run.distill.beta.start, 0.1);
}

TEST(Presets, AllAreValid) {
  for (const auto& name : preset_names()) EXPECT_NO_THROW(load_config({.file = std::nullopt, .preset = name, .overrides = {}})) << name;
}

TEST(Settings, OptionsAreUniqueAndDefaultsAllowed) {
  std::vector<std::string> options;
  for (const auto& setting : all_settings()) {
    if (!setting.option.empty()) options.push_back(setting.option);
    RunConfig config;
    EXPECT_EQ(setting.set(config, setting.get(config)), "") << setting.key;
    EXPECT_FALSE(setting.help.empty()) << setting.key;
  }
  std::sort(options.begin(), options.end());
  EXPECT_EQ(std::adjacent_find(options.begin(), options.end()), options.end());
}

TEST(Settings, ReferenceHasEveryKey) {
  const auto page = settings_reference();
  for (const auto& setting : all_settings()) {
    const auto section = setting.section();
    EXPECT_THAT(page, HasSubstr("| `" + (section.empty() ? setting.key : setting.key.substr(section.size() + 1)) + "` |"));
  }
}

TEST(Settings, ThePageInDocsIsTheTable) {
  const fs::path page = source_directory() / "docs" / "reference" / "settings.md";
  if (std::getenv("DISTIL_XLSTM_WRITE_DOCS") != nullptr) write_file_atomic(page, settings_reference());
  EXPECT_EQ(read_file(page), settings_reference()) << "run this test with DISTIL_XLSTM_WRITE_DOCS=1 to write it anew";
}

TEST(Recipes, AllAreValid) {
  for (const auto& path : expand_paths({(source_directory() / "recipes" / "*.toml").string()})) {
    EXPECT_NO_THROW(load_config({.file = path, .preset = "", .overrides = {}})) << path;
  }
}

TEST(Settings, JsonNestsAsTheFile) {
  const auto object = to_json(RunConfig{});
  EXPECT_EQ(object["distill"]["alpha"]["schedule"], "delta-paper");
  EXPECT_EQ(object["train"]["micro_batch_size"], 8);
  EXPECT_EQ(object["seed"], 0);
}

}  // namespace
}  // namespace distil_xlstm::config
