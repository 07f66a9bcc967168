// What a resumed run must find again: teacher, tokenizer, validation text.
#include "train/origin.h"

#include "base/error.h"
#include "base/log.h"
#include "io/safetensors.h"
#include "small_run.h"
#include "teacher/fingerprint.h"

namespace distil_xlstm::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class OriginTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    now_ = describe_origin({.teacher = files_, .tokenizer = tokenizer_, .teacher_precision = "fp32", .precision = "fp32"});
    before_ = now_;
  }

  std::string error() {
    try {
      check_origin(before_, now_, "step-00000004", "stories260K");
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  }

  std::string warning() {
    ::testing::internal::CaptureStderr();
    init_logging();
    EXPECT_EQ(error(), "");
    return ::testing::internal::GetCapturedStderr();
  }

  io::ModelFiles files_ = io::open_model("stories260K");
  Tokenizer tokenizer_{*files_.tokenizer};
  json before_, now_;
};

TEST_F(OriginTest, TheSameTeacherIsTheSame) {
  EXPECT_EQ(describe_origin({.teacher = files_, .tokenizer = tokenizer_, .teacher_precision = "fp32", .precision = "fp32"}), now_);
  EXPECT_EQ(warning(), "");
  before_ = parse_json(now_.dump(), "test");  // as a checkpoint keeps it
  EXPECT_EQ(warning(), "");
}

TEST_F(OriginTest, NamesWhatIsAnother) {
  before_["teacher_config"]["rope_theta"] = 500000.0;
  before_["teacher_config"]["of_another_family"] = 1;
  EXPECT_THAT(error(), AllOf(HasSubstr("step-00000004: the checkpoint was trained with another teacher than stories260K is now"),
                             HasSubstr("its configuration: rope_theta was 500000.0, is 10000.0"),
                             HasSubstr("its configuration: of_another_family was 1, is not there"), Not(HasSubstr("its weights"))));
  before_ = now_;
  before_["teacher_weights"] = "0123";
  before_["tokenizer"] = "4567";
  EXPECT_THAT(error(), AllOf(HasSubstr("its weights: fingerprint was \"0123\", is"), HasSubstr("its tokenizer: fingerprint was \"4567\""),
                             Not(HasSubstr("its configuration")), HasSubstr("Bring the first one back")));
  before_ = now_;
  before_["validation_shards"] = "a";
  now_["validation_shards"] = "b";
  EXPECT_THAT(error(), HasSubstr("was validated on other shards than those of data.validation now"));
  now_["validation_shards"] = nullptr;  // eval.every_steps is 0 now
  EXPECT_EQ(error(), "");
}

// The program makes the configuration of a GGUF file, an earlier version with other keys.
TEST_F(OriginTest, OfAGgufFileOnlyItsMetadataCount) {
  io::ModelFiles gguf = files_;
  gguf.path = "teacher.gguf";
  before_ = now_;
  now_ = describe_origin({.teacher = gguf, .tokenizer = tokenizer_, .teacher_precision = "fp32", .precision = "fp32"});
  EXPECT_EQ(now_["teacher_config"]["rope_theta"], 10000.0);
  before_.erase("teacher_format");  // as earlier versions wrote it
  before_["teacher_config"]["key_of_an_earlier_version"] = 1;
  before_["teacher_config"].erase("hidden_act");
  EXPECT_EQ(warning(), "");
  before_["teacher_config"]["rope_theta"] = 500000.0;
  EXPECT_THAT(error(), AllOf(HasSubstr("its configuration: rope_theta was 500000.0, is 10000.0"), Not(HasSubstr("earlier_version"))));
  before_ = now_;
  before_["teacher_weights"] = "0123";
  EXPECT_THAT(error(), AllOf(HasSubstr("its weights: fingerprint was \"0123\", is"), Not(HasSubstr("its configuration"))));
}

TEST_F(OriginTest, WarnsOfWhatDoesNotTouchTheTraining) {
  before_["chat_template"] = "another";
  EXPECT_THAT(warning(), HasSubstr("the chat template of stories260K has changed since the run began: the run keeps the one that it has"));
  before_ = now_;
  before_["teacher_precision"] = "bf16";
  EXPECT_THAT(warning(), HasSubstr("teacher_precision was \"bf16\", is \"fp32\": the run goes on, but not to the same bits"));
  before_ = nullptr;
  EXPECT_THAT(warning(), HasSubstr("does not say what teacher it was trained with"));
}

TEST(Fingerprint, KeysThatChangeNothingAreLeftOut) {
  EXPECT_EQ(teacher::computing_config(
                {{"rope_theta", 1e4}, {"transformers_version", "5"}, {"eos_token_id", 2}, {"hidden_size", 8}, {"head_dim", nullptr}}),
            (json{{"hidden_size", 8}, {"rope_theta", 1e4}}));
}

TEST_F(OriginTest, EveryByteOfEveryTensorCounts) {
  std::vector<float> values(1 << 16, 1.0F);
  const auto fingerprint = [&](const std::string& name, std::vector<int64_t> shape, bool is_split) {
    const auto bytes = std::as_bytes(std::span(values));
    const fs::path directory = folder_ / "weights";
    fs::remove_all(directory);
    fs::create_directories(directory);
    const io::TensorView view{name, io::DType::f32, std::move(shape), bytes}, other{"b", io::DType::f32, {1}, bytes.first(4)};
    std::vector<fs::path> paths = {directory / "one.safetensors"};
    if (is_split) {
      paths.push_back(directory / "two.safetensors");
      io::write_safetensors(paths[0], {view});
      io::write_safetensors(paths[1], {other});
    } else {
      io::write_safetensors(paths[0], {other, view});
    }
    return teacher::weights_fingerprint(*io::open_safetensors_files(paths, "test"));
  };
  const std::string first = fingerprint("a", {256, 256}, false);
  EXPECT_EQ(fingerprint("a", {256, 256}, true), first) << "files do not matter";
  EXPECT_NE(fingerprint("a", {256 * 256}, false), first);
  EXPECT_NE(fingerprint("c", {256, 256}, false), first);
  values.back() = std::nextafter(1.0F, 2.0F);
  EXPECT_NE(fingerprint("a", {256, 256}, false), first);
}

}  // namespace
}  // namespace distil_xlstm::train
