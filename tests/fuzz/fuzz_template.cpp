// A chat template and a conversation: {"template": text, "messages": [{"role", ...}], "tools", "documents", "chat_template_kwargs",
// "config": more of tokenizer_config.json}.
#include "fuzz/fuzz_target.h"
#include "tokenizer/chat_template.h"

DISTIL_XLSTM_RECIPE_MUTATOR({"{% for message in messages %}",
                             "{% endfor %}",
                             "{{ message.role }}",
                             "{{ message['content'] }}",
                             "{% if add_generation_prompt %}",
                             "{% endif %}",
                             "{% else %}",
                             "{% set x = namespace(a=[]) %}",
                             "{% set x = x + x %}",
                             "{% set n = namespace(x=1) %}",
                             "{% set n.x = [n.x, n.x] %}",
                             "{% set n.x = n %}",
                             "{{ n.x }}",
                             "{{ 'a'.replace('a', 'aa') }}",
                             "{{ '{:9}'.format(1) }}",
                             "{{ messages | tojson(indent=2) }}",
                             "{{ bos_token }}",
                             "{% generation %}",
                             "{% endgeneration %}",
                             "{%- ",
                             " -%}",
                             "{{ raise_exception('no') }}",
                             "{{ strftime_now('%d %b') }}",
                             "{% macro m(a) %}",
                             "{{ m(1) }}",
                             "{% endmacro %}",
                             "{{ 'a' * 1000000 }}",
                             "{{ range(100000000) | list }}",
                             "{% for i in range(99999) %}",
                             "{{ loop.index }}",
                             "{{ x.split('a') }}",
                             " | trim",
                             " | upper",
                             " | join('')",
                             "[1,2]*9999",
                             "((((((((",
                             "[[[[[[[[",
                             "{{",
                             "}}",
                             "{%",
                             "%}",
                             "role",
                             "content",
                             "system",
                             "user",
                             "assistant",
                             "template",
                             "messages",
                             "config",
                             "bos_token",
                             "tools",
                             "tool_calls",
                             "reasoning_content",
                             "chat_template_kwargs",
                             "documents"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null()) return -1;
  json config = recipe.contains("config") && recipe["config"].is_object() ? recipe["config"] : json::object();
  config["chat_template"] = fuzz::text_or(recipe, "template", "{{ messages[0].content }}");
  Conversation conversation;
  json row = {{"messages", fuzz::list_or_empty(recipe, "messages")}};
  for (const char* key : {"tools", "documents", "chat_template_kwargs"}) {
    if (recipe.contains(key)) row[key] = recipe[key];
  }
  if (!take_conversation(std::move(row), "messages", conversation).empty()) return -1;
  fuzz::tolerate([&] {
    const ChatTemplate chat(io::TokenizerFiles{.tokenizer_json = "", .tokenizer_config = config, .origin = "fuzz"});
    fuzz::tolerate([&] { (void)chat.render(conversation, true); });
    fuzz::tolerate([&] { (void)chat.render_spans(conversation); });
  });
  return 0;
}
