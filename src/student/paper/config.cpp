#include "student/paper/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace distil_xlstm::student {
namespace {

// Width of a projection: a multiple of config.round_proj_up_to_multiple_of (docs/mathematics.md 1); the product is formed in double
// precision.
int64_t rounded_width(const StudentConfig& config, double proj_factor) {
  const auto multiple = static_cast<double>(config.round_proj_up_to_multiple_of);
  const double units = proj_factor * static_cast<double>(config.embedding_dim) / multiple;
  return config.round_proj_up_to_multiple_of * static_cast<int64_t>(config.round_proj_up_dim_up ? std::ceil(units) : std::floor(units));
}

// "the nearest that do are 8 and 12": divisors of `total` around `value`.
std::string nearest_divisors(int64_t total, int64_t value) {
  int64_t below = std::clamp<int64_t>(value, 1, total);
  while (total % below != 0) --below;
  int64_t above = std::clamp<int64_t>(value, 1, total);
  while (total % above != 0) ++above;
  return below == above ? fmt::format("the nearest that does is {}", below)
                        : fmt::format("the nearest that do are {} and {}", below, above);
}

void check_divides(const char* key, int64_t value, const char* total_name, int64_t total) {
  if (value < 1 || total % value != 0)
    throw ConfigError("{} = {} does not divide {} = {}: {}", key, value, total_name, total, nearest_divisors(total, value));
}

void check_at_least(const char* key, int64_t value, int64_t least) {
  if (value < least) throw ConfigError("{} = {}: must be at least {}", key, value, least);
}

void check_factor(const char* key, double value) {
  if (!std::isfinite(value) || value <= 0.0) throw ConfigError("{} = {}: must be a positive number", key, value);
}

int64_t derived_num_blocks(const StudentSettings& settings, const teacher::TeacherShape& teacher) {
  if (const auto* count = std::get_if<int64_t>(&settings.num_blocks)) return *count;
  return std::get<config::BlocksRule>(settings.num_blocks) == config::BlocksRule::same ? teacher.num_layers
                                                                                       : std::max<int64_t>(1, teacher.num_layers / 2);
}

int64_t derived_num_heads(const StudentSettings& settings, const teacher::TeacherShape& teacher) {
  if (const auto* count = std::get_if<int64_t>(&settings.num_heads)) return *count;
  const int64_t quarters = (teacher.num_heads + 3) / 4;
  return std::get<config::HeadsRule>(settings.num_heads) == config::HeadsRule::ceil4 ? 4 * quarters : quarters;
}

std::vector<int64_t> derived_slstm_at(const StudentSettings& settings, int64_t num_blocks) {
  if (const auto* list = std::get_if<std::vector<int64_t>>(&settings.slstm_at)) return *list;
  using config::SlstmRule;
  const auto rule = std::get<SlstmRule>(settings.slstm_at);
  std::vector<int64_t> blocks;
  for (int64_t block = 0; rule != SlstmRule::none && block < num_blocks; block += rule == SlstmRule::all ? 1 : 2) blocks.push_back(block);
  return blocks;
}

}  // namespace

std::string StudentConfig::mixer_at(int64_t block) const {
  if (!mixers.empty()) return mixers.at(static_cast<size_t>(block));
  return std::find(slstm_at.begin(), slstm_at.end(), block) != slstm_at.end() ? "slstm" : "mlstm";
}

bool StudentConfig::has_mixer(std::string_view kind) const {
  for (int64_t block = 0; block < num_blocks; ++block) {
    if (mixer_at(block) == kind) return true;
  }
  return false;
}

int64_t StudentConfig::mlstm_inner_dim() const {
  return rounded_width(*this, mlstm_proj_factor);
}

int64_t StudentConfig::ffn_dim() const {
  return rounded_width(*this, ffn_proj_factor);
}

void StudentConfig::check() const {
  check_at_least("student.vocab_size", vocab_size, 1);
  check_at_least("student.hidden_size", embedding_dim, 1);
  check_at_least("student.num_blocks", num_blocks, 1);
  check_at_least("student.chunk_size", chunk_size, 1);
  check_at_least("student.round_proj_up_to_multiple_of", round_proj_up_to_multiple_of, 1);
  check_factor("student.mlstm_proj_factor", mlstm_proj_factor);
  check_factor("student.ffn_proj_factor", ffn_proj_factor);

  std::vector<int64_t> sorted = slstm_at;
  std::sort(sorted.begin(), sorted.end());
  if (!sorted.empty() && (sorted.front() < 0 || sorted.back() >= num_blocks))
    throw ConfigError("student.slstm_at has block {}: student.num_blocks = {} allows 0 to {}",
                      sorted.front() < 0 ? sorted.front() : sorted.back(), num_blocks, num_blocks - 1);
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
    throw ConfigError("student.slstm_at has block {} twice: name each block once", *twice);

  if (!mixers.empty() && static_cast<int64_t>(mixers.size()) != num_blocks)
    throw ConfigError("student.mixers names {} kinds for {} blocks: one each is needed", mixers.size(), num_blocks);
  if (has_mixer("slstm")) {
    check_divides("student.num_heads", slstm_num_heads, "student.hidden_size", embedding_dim);
    check_at_least("student.conv1d_kernel_size", slstm_conv1d_kernel_size, 0);
    if (bias_init == config::BiasInit::powerlaw_blockdependent && slstm_num_heads == embedding_dim)
      throw ConfigError(
          "student.num_heads = {} leaves sLSTM heads of one unit, for which student.bias_init = \"powerlaw_blockdependent\" is not "
          "defined: "
          "use fewer heads or bias_init = \"small_init\"",
          slstm_num_heads);
    if (has_ffn) check_at_least("student.ffn_proj_factor * student.hidden_size, rounded", ffn_dim(), 1);
  }
  if (has_mixer("mlstm")) {
    check_at_least("student.mlstm_proj_factor * student.hidden_size, rounded", mlstm_inner_dim(), 1);
    check_divides("student.num_heads", mlstm_num_heads, "the mLSTM's inner width", mlstm_inner_dim());
    check_divides("student.qkv_proj_blocksize", qkv_proj_blocksize, "the mLSTM's inner width", mlstm_inner_dim());
    if (mlstm_conv1d_kernel_size < 1)
      throw ConfigError(
          "student.conv1d_kernel_size = {}: an mLSTM block needs a convolution of at least 1 tap (only sLSTM blocks can do without)",
          mlstm_conv1d_kernel_size);
  }
}

StudentConfig derive_student(const StudentSettings& settings, const teacher::TeacherShape& teacher, int64_t context_length) {
  StudentConfig config;
  config.vocab_size = teacher.vocab_size;
  config.embedding_dim = teacher.hidden_size;
  config.context_length = context_length;
  config.num_blocks = derived_num_blocks(settings, teacher);
  config.slstm_at = derived_slstm_at(settings, config.num_blocks);
  config.mlstm_num_heads = config.slstm_num_heads = derived_num_heads(settings, teacher);
  config.mlstm_conv1d_kernel_size = config.slstm_conv1d_kernel_size = settings.conv1d_kernel_size;
  config.qkv_proj_blocksize = settings.qkv_proj_blocksize;
  config.mlstm_proj_factor = settings.mlstm_proj_factor;
  config.ffn_proj_factor = settings.ffn_proj_factor;
  config.ffn_act_fn = settings.ffn_act_fn;
  config.bias_init = settings.bias_init;
  config.recurrent_weight_init = settings.recurrent_weight_init;
  config.chunk_size = settings.chunk_size;
  config.tie_weights = teacher.is_tied;
  config.check();
  return config;
}

}  // namespace distil_xlstm::student
