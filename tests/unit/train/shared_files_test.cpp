// What checkpoints share, where the teacher's precision is another than it was.
#include "train/shared_files.h"

#include "base/error.h"
#include "io/checksums.h"
#include "io/safetensors.h"
#include "small_run.h"

namespace distil_xlstm::train {
namespace {

using ::testing::HasSubstr;

class SharedFilesTest : public RunTest {
 protected:
  std::unique_ptr<teacher::Teacher> teacher_of(at::ScalarType dtype) { return teacher::load_teacher(files_, at::kCPU, dtype); }
  SharedSources sources(const teacher::Teacher& teacher) { return {teacher, tokenizer_, generation_config_}; }
  io::DType stored() { return io::SafetensorsFile(frozen_).at("token_embedding.weight").dtype; }

  io::ModelFiles files_ = io::open_model("stories260K");
  Tokenizer tokenizer_{*files_.tokenizer};
  json generation_config_ = json::object();
  fs::path frozen_;

  void SetUp() override {
    RunTest::SetUp();
    frozen_ = folder_ / "frozen.safetensors";
  }
};

TEST_F(SharedFilesTest, FrozenMatricesFollowTheTeachersPrecision) {
  const json records = write_shared_files(folder_, sources(small_teacher()));
  EXPECT_EQ(stored(), io::DType::f32);
  EXPECT_EQ(restore_shared_files(folder_, records, sources(small_teacher())), records);
  const auto half = teacher_of(at::kBFloat16);
  const json restored = restore_shared_files(folder_, records, sources(*half));
  EXPECT_EQ(stored(), io::DType::bf16);
  EXPECT_TRUE(at::equal(read_tensors(frozen_).front().second, half->embedding_weight()));
  EXPECT_EQ(restored["frozen.safetensors"], io::file_record(frozen_));
  EXPECT_EQ(restored["tokenizer.json"], records["tokenizer.json"]);
}

TEST_F(SharedFilesTest, TypesOfOneWidthAreNoOtherTeacher) {
  write_shared_files(folder_, sources(*teacher_of(at::kBFloat16)));
  const auto half = teacher_of(at::kHalf);
  EXPECT_NO_THROW(restore_shared_files(folder_, json::object(), sources(*half)));  // of a version without records
  write_tensors(frozen_, {{"token_embedding.weight", half->embedding_weight() + 1.0}});
  try {
    restore_shared_files(folder_, json::object(), sources(*half));
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("the run was trained with another teacher"));
  }
}

}  // namespace
}  // namespace distil_xlstm::train
