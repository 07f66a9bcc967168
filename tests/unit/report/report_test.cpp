// What a report reads from runs, which figures it draws, and that its page stands alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "report/figures.h"
#include "report/plugin/ticks.h"
#include "report/run_metrics.h"
#include "unit/data/data_testing.h"

namespace distil_xlstm::report {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class ReportTest : public ::testing::Test {
 protected:
  fs::path make_run(const std::string& name, const std::string& metrics, const json& description = json::object()) {
    const fs::path run = folder_ / name;
    fs::create_directories(run);
    write_file_atomic(run / "metrics.jsonl", metrics);
    write_json(run / "run.json", description);
    return run;
  }

  data::Folder folder_;
};

constexpr const char* kMetrics = R"({"kind": "train", "step": 1, "tokens": 64, "loss": 6.5, "ce_loss": 6.0, "grad_norm": 2.0, "alpha": 0.8}
{"kind": "train", "step": 2, "tokens": 128, "loss": 6.25, "ce_loss": 5.5, "grad_norm": 1.0, "alpha": 0.7}
{"kind": "skipped", "step": 3, "reason": "loss"}
{"kind": "validation", "step": 2, "perplexity": 200.5, "teacher_perplexity": 5.0}
)";

TEST_F(ReportTest, ReadsEveryQuantityAtItsStepAndTokens) {
  const auto runs = read_runs({make_run("a", kMetrics).string()});
  ASSERT_EQ(runs.size(), 1U);
  EXPECT_EQ(runs[0].name, "a");
  EXPECT_EQ(runs[0].num_skipped, 1);
  EXPECT_THAT(runs[0].train.at("loss").y, ElementsAre(6.5, 6.25));
  EXPECT_THAT(runs[0].train.at("loss").tokens, ElementsAre(64.0, 128.0));
  EXPECT_THAT(runs[0].validation.at("perplexity").step, ElementsAre(2.0));
  EXPECT_THAT(runs[0].validation.at("perplexity").tokens, ElementsAre(128.0)) << "those seen when it was measured";
}

TEST_F(ReportTest, PassesOverALineThatWasCut) {
  const auto runs = read_runs({make_run("a", std::string(kMetrics) + R"({"kind": "train", "st)").string()});
  EXPECT_EQ(runs[0].train.at("loss").y.size(), 2U);
}

TEST_F(ReportTest, NamesFileAndLineOfABrokenRecord) {
  const auto run = make_run("a", "{\"kind\": \"train\", \"step\": 1}\nnonsense\n");
  try {
    read_runs({run.string()});
    FAIL() << "no error";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("metrics.jsonl:2"));
  }
  EXPECT_THROW(read_runs({(folder_ / "nothing").string()}), IoError);
}

TEST_F(ReportTest, TellsRunsOfTheSameNameApart) {
  const auto runs = read_runs({make_run("x/run", kMetrics).string(), make_run("y/run", kMetrics).string() + "/"});
  EXPECT_NE(runs[0].name, runs[1].name);
  EXPECT_THAT(runs[0].name, HasSubstr("x/run"));
}

TEST_F(ReportTest, DrawsWhatWasRecordedAndNothingElse) {
  const auto figures = make_figures(read_runs({make_run("a", kMetrics).string(), make_run("b", kMetrics).string()}));
  std::vector<std::string> titles;
  for (const auto& figure : figures) titles.push_back(figure.title);
  EXPECT_THAT(titles, ElementsAre("Validation perplexity", "Total loss", "Cross-entropy", "Gradient norm", "Alpha and beta"));
  ASSERT_EQ(figures[0].curves.size(), 4U) << "student and teacher of two runs";
  EXPECT_EQ(figures[0].curves[0].name, "a student");
  EXPECT_TRUE(figures[0].curves[1].is_dashed);
  EXPECT_EQ(figures[0].curves[2].run, 1);
  EXPECT_THAT(figures[1].curves[0].x, ElementsAre(1.0, 2.0));
}

TEST_F(ReportTest, NamesTheDistanceThatWasMeasured) {
  const auto label = [&](const std::string& name, const std::string& distance) {
    const std::string metrics = R"({"kind": "train", "step": 1, "alignment_loss": 0.5})"
                                "\n";
    const json description = {{"settings", {{"distill", {{"alignment", {{"distance", distance}}}}}}}};
    return make_figures(read_runs({make_run(name, metrics, description).string()})).at(0).y_label;
  };
  EXPECT_EQ(label("a", "cosine"), "1 - cosine");
  EXPECT_EQ(label("b", "frobenius"), "Frobenius / sqrt(n)");
}

std::vector<std::string> labels(const std::vector<Tick>& ticks) {
  std::vector<std::string> all;
  for (const auto& tick : ticks) all.push_back(tick.label);
  return all;
}

TEST(Ticks, HaveAsManyDigitsAsTellThemApart) {
  EXPECT_THAT(labels(linear_ticks(0, 1, 5)), ElementsAre("0.0", "0.2", "0.4", "0.6", "0.8", "1.0"));
  EXPECT_THAT(labels(linear_ticks(4.10101, 4.10109, 4)), ElementsAre("4.10102", "4.10104", "4.10106", "4.10108"));
  EXPECT_THAT(labels(linear_ticks(0, 40000, 4)), ElementsAre("0", "10 k", "20 k", "30 k", "40 k"));
  EXPECT_THAT(labels(linear_ticks(1000000, 1000400, 2)), ElementsAre("1.0000 M", "1.0002 M", "1.0004 M"));
  EXPECT_THAT(labels(linear_ticks(0.0001, 0.0003, 2)), ElementsAre("1e-04", "2e-04", "3e-04"));
}

TEST(Ticks, OfALogarithmicAxisAreRound) {
  EXPECT_THAT(labels(log_ticks(3, 5000)), ElementsAre("10", "100", "1000"));
  EXPECT_THAT(labels(log_ticks(4, 210)), ElementsAre("5", "10", "20", "50", "100", "200"));
  EXPECT_THAT(labels(log_ticks(0.08, 0.6)), ElementsAre("0.1", "0.2", "0.5"));
  EXPECT_THAT(labels(log_ticks(4.1, 4.2)), ElementsAre("4.10", "4.12", "4.14", "4.16", "4.18", "4.20"));
  EXPECT_LE(log_ticks(1e-9, 1e9).size(), 8U);
}

TEST(Ticks, OneValueHasARangeOfItsOwn) {
  for (const double value : {1.0, 4.101, 0.0, -3.0, 2e-4, 512.0}) {
    const Interval range = padded({value, value}, 0.06);
    EXPECT_LT(range.low, value);
    EXPECT_GT(range.high, value);
    const auto all = labels(linear_ticks(range.low, range.high, 5));
    EXPECT_GE(all.size(), 3U) << value;
    EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), all.size()) << value;
  }
}

TEST(Smoothed, KeepsAConstantAndPassesOverGaps) {
  const std::vector<double> constant(500, 3.0);
  for (const double value : smoothed(constant)) EXPECT_NEAR(value, 3.0, 1e-12);
  std::vector<double> noisy;
  for (int i = 0; i < 1000; ++i) noisy.push_back(i % 2 == 0 ? 1.0 : -1.0);
  noisy[500] = std::numeric_limits<double>::quiet_NaN();
  const auto smooth = smoothed(noisy);
  EXPECT_LT(std::abs(smooth[999]), 0.1);
  EXPECT_TRUE(std::isfinite(smooth[500]));
  EXPECT_EQ(smoothed({7.0}), std::vector<double>{7.0});
}

TEST_F(ReportTest, ThePageStandsAloneAndEscapesWhatItShows) {
  const json settings = {{"settings", {{"teacher", {{"model", "</script><b>x"}}}, {"distill", {{"method", "delta"}}}}}};
  const auto runs = read_runs({make_run("a", kMetrics, settings).string()});
  const std::string page = html_page(runs, "A <title> & more");
  EXPECT_THAT(page, HasSubstr("<title>A &lt;title&gt; &amp; more</title>"));
  EXPECT_THAT(page, Not(HasSubstr("</script><b>x")));
  EXPECT_THAT(page, HasSubstr("&lt;/script&gt;&lt;b&gt;x"));
  EXPECT_THAT(page, HasSubstr("200.5"));
  for (const char* mark : {"{{", "src=\"http", "href=\"http", "@import"}) EXPECT_THAT(page, Not(HasSubstr(mark))) << mark;
}

TEST_F(ReportTest, DrawsAPng) {
  const auto figures = make_figures(read_runs({make_run("a", kMetrics).string()}));
  try {
    write_png(folder_ / "figures.png", figures);
  } catch (const IoError& error) {
    if (std::string(error.what()).find("libdistil_xlstm_png.so is not beside") == std::string::npos) throw;
    GTEST_SKIP() << "libdistil_xlstm_png.so is not built: no Cairo";
  }
  EXPECT_THAT(read_file(folder_ / "figures.png"), ::testing::StartsWith("\x89PNG\r\n\x1a\n"));
  for (const auto& entry : fs::directory_iterator((folder_ / "figures.png").parent_path()))
    EXPECT_THAT(entry.path().string(), Not(HasSubstr(".tmp"))) << "nothing else";
  write_png(folder_ / "new folder" / "figures.png", figures);
  EXPECT_TRUE(fs::exists(folder_ / "new folder" / "figures.png"));
  EXPECT_THROW(write_png(folder_ / "figures.png" / "below a file.png", figures), IoError);
}

}  // namespace
}  // namespace distil_xlstm::report
