#include "tokenizer/row_template.h"

#include "base/error.h"
#include "tokenizer/rust.h"

namespace distil_xlstm {

struct RowTemplate::Impl {
  std::string where;
  rust::TemplateHandle handle;
  std::vector<std::string> keys;
};

RowTemplate::RowTemplate(const std::string& source, std::string where) : impl_(std::make_unique<Impl>()) {
  impl_->where = std::move(where);
  rust::Error error;
  if (!dx_row_template_compile(rust::text(source), impl_->handle.out(), error.out()))
    throw DataError("{}: {}", impl_->where, error.message());
  rust::String names;
  if (!dx_template_variables(impl_->handle.get(), names.out(), error.out())) throw DataError("{}: {}", impl_->where, error.message());
  impl_->keys = parse_json(names.str(), impl_->where).get<std::vector<std::string>>();
}

RowTemplate::~RowTemplate() = default;
RowTemplate::RowTemplate(RowTemplate&&) noexcept = default;
RowTemplate& RowTemplate::operator=(RowTemplate&&) noexcept = default;

const std::vector<std::string>& RowTemplate::keys() const {
  return impl_->keys;
}

std::string RowTemplate::render(const json& row, const std::string& place) const {
  const std::string context = row.dump(-1, ' ', false, json::error_handler_t::replace);
  rust::String rendered;
  rust::Error error;
  if (!dx_template_render(impl_->handle.get(), rust::text(context), rendered.out(), error.out()))
    throw DataError("{}: {}: {}", place, impl_->where, error.message());
  return rendered.str();
}

}  // namespace distil_xlstm
