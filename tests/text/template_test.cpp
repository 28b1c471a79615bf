// Templates against Jinja2 3.1.6 in the setting of transformers (tests/fixtures/text/templates.json), and hostile ones.
#include <filesystem>
#include <fstream>

#include "support.h"
#include "text/chat_template.h"
#include "text/json_lines.h"

namespace fathom::text {
namespace {

const Json kContext = {{"messages", Json::array({{{"role", "user"}, {"content", "Hi"}}})}};

Result<std::string> render(std::string_view source, const Json& context = kContext) {
  FATHOM_TRY(const ChatTemplate chat, ChatTemplate::parse(source));
  return chat.render(context, {.now = 1700000000});
}
std::string key_of(std::string_view source) {
  const auto rendered = render(source);
  return rendered ? "renders " + *rendered : rendered.error().key;
}

TEST(Template, RendersAsJinjaDoes) {
  const Json golden = test::fixture("templates.json");
  ASSERT_GE(golden.size(), 30u);
  for (std::size_t i = 1; i < golden.size(); ++i) {
    const auto rendered = render(golden[i]["template"].get<std::string>(), golden[0]["context"]);
    if (golden[i].contains("fails"))
      EXPECT_FALSE(rendered) << golden[i]["template"];
    else
      EXPECT_EQ(rendered.value_or(test::why(rendered)), golden[i]["rendered"].get<std::string>())
          << golden[i]["template"];
  }
}

TEST(Template, WhitespaceControl) {
  EXPECT_EQ(render("a\n  {% if true %}\n  b\n  {% endif %}\nc\n"), "a\n  b\nc");
  EXPECT_EQ(render("a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc"), "abc");
  EXPECT_EQ(render("a\n  {%+ if true +%}\nb{% endif %}"), "a\n  \nb");
  EXPECT_EQ(render("  {{ 1 }}\n{# c #}\n{#- d -#}\n x"), "  1\nx");
  EXPECT_EQ(render("a\r\nb\rc\n\n"), "a\nb\nc\n");
  EXPECT_EQ(render("{% raw %}{{ x }}{% endraw %}{{ '}}' }}{{ {'a': {'b': 1}}['a'] }}"), "{{ x }}}}{'b': 1}");
}

TEST(Template, UnknownIsAnErrorWithItsLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ 1|nope }}", "text.template_unknown_filter"},
      {"{{ 1 is nope }}", "text.template_unknown_test"},
      {"{% nope %}", "text.template_unknown_tag"},
      {"{% include 'x' %}", "text.template_unsupported"},
      {"{% for x in [1] recursive %}{% endfor %}", "text.template_unsupported"},
      {"{{ 'a'.zfill(3) }}", "text.template_unknown_method"},
      {"{{ [].append(1) }}", "text.template_unknown_method"},
      {"{{ nope.x }}", "text.template_undefined"},
      {"{{ nope() }}", "text.template_undefined"},
      {"{{ 1 + 'a' }}", "text.template_types"},
      {"{{ 1 / 0 }}", "text.template_zero"},
      {"{% for x in 5 %}{% endfor %}", "text.template_not_iterable"},
      {"{% if 1 %}", "text.template_unclosed"},
      {"{{ 'a }}", "text.template_unclosed"},
      {"{{ 1", "text.template_unclosed"},
      {"{# x", "text.template_unclosed"},
      {"{% raw %}", "text.template_unclosed"},
      {"{{ ) }}", "text.template_unexpected"},
      {"{{ 1 ! }}", "text.template_unexpected"},
      {"{{ }}", "text.template_unexpected"},
      {"{% break %}", "text.template_outside_loop"},
      {"{{ '\\ud800' }}", "text.template_bad_escape"},
      {"{{ 9223372036854775807 + 1 }}", "text.template_number"},
      {"{{ 99999999999999999999 }}", "text.template_number"},
      {"{% set a, b = [1] %}", "text.template_unpack"},
      {"{% set m.x = 1 %}", "text.template_not_namespace"},
      {"{{ raise_exception('no such thing') }}", "text.template_raised"},
      {"{{ 'a'|trim(1, 2) }}", "text.template_arguments"},
      {"{{ nope|tojson }}", "text.template_not_json"},
      {"{{ range(200000) }}", "text.template_range"}};
  for (const auto& [source, key] : cases) {
    EXPECT_EQ(key_of(source), key) << source;
    const auto rendered = render("\n\n" + std::string(source));
    EXPECT_NE(test::why(rendered).find('3'), std::string::npos) << source << ": " << test::why(rendered);
  }
  EXPECT_NE(test::why(render("{{ raise_exception('no such thing') }}")).find("no such thing"), std::string::npos);
}

TEST(Template, HostileOnesEndWithASentence) {
  const std::pair<std::string, const char*> cases[] = {
      {"{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
       "text.template_too_large"},
      {"{{ 'a' * 9000000000000000000 }}", "text.template_too_large"},
      {"{{ [1, 2] * 4611686018427387904 }}", "text.template_too_large"},
      {"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "text.template_too_large"},
      {"{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor "
       "%}{% endfor %}",
       "text.template_too_large"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "text.template_deep"},
      {"{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
       "text.template_too_long"},
      {"{% set a = namespace(x=[]) %}{% set b = namespace(x=[]) %}{% for i in range(60) %}{% set a.x = [a.x, a.x] %}{% "
       "set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}",
       "text.template_too_long"},
      {"{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson "
       "}}",
       "text.template_too_long"},
      {"{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
       "text.template_deep_value"},
      {"{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}", "text.template_deep_value"},
      {"{{ 'a'|replace('', 'b' * 100000)|replace('b', 'c' * 100000) }}", "text.template_too_large"},
      {"{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}", "text.template_deep"},
      {"{{ " + std::string(5000, '[') + " }}", "text.template_deep"},
      {"{{ 1" + std::string(20000, '+') + "1 }}", "text.template_deep"}};
  for (const auto& [source, key] : cases) EXPECT_EQ(key_of(source), key) << source.substr(0, 120);
  std::string blocks, chain = "{{ 1", nots = "{{ ";
  for (int i = 0; i < 5000; ++i) blocks += "{% if 1 %}", chain += " + 1", nots += "not ";
  EXPECT_EQ(key_of(blocks), "text.template_deep");
  EXPECT_EQ(key_of(chain + " }}"), "text.template_deep");
  EXPECT_EQ(key_of(nots + "1 }}"), "text.template_deep");
  EXPECT_EQ(key_of(std::string(2u << 20, 'a')), "text.template_source_too_large");
  EXPECT_EQ(key_of("\xff"), "text.invalid_utf8");
}

TEST(Template, ContextAndSpecialTokens) {
  TokenizerConfig config;
  config.templates = {{"default",
                       "{{ bos_token }}{{ pad_token }}{{ tools is none }}{{ documents is none }}{{ "
                       "add_generation_prompt }}{{ extra }}"},
                      {"tool_use", "tools: {{ tools|length }}"}};
  config.special_tokens = {{"bos_token", "<s>"}};
  const auto chat = ChatTemplate::from_config(config);
  ASSERT_TRUE(chat);
  EXPECT_EQ(chat->render(std::vector<ChatMessage>{{"user", "x"}}, true), "<s>TrueTrueTrue");
  Json context = kContext;
  context["extra"] = 5;
  EXPECT_EQ(chat->render(context), "<s>TrueTrueFalse5");
  context["bos_token"] = "other";
  EXPECT_EQ(chat->render(context), "otherTrueTrueFalse5");
  context["tools"] = Json::array({1, 2});
  EXPECT_EQ(chat->render(context), "tools: 2");
  for (const Json& bad :
       {Json(), Json::array(), Json::object(), Json{{"messages", 5}}, Json{{"messages", Json::array({5})}}}) {
    const auto rendered = chat->render(bad);
    ASSERT_FALSE(rendered);
    EXPECT_EQ(rendered.error().key, "text.bad_context");
  }
  config.templates = {{"only", "x"}};
  EXPECT_EQ(ChatTemplate::from_config(config)->render(kContext).error().key, "text.no_default_template");
  Json huge = kContext;
  huge["n"] = 18446744073709551615u;
  EXPECT_EQ(chat->render(huge).error().key, "text.template_number");
}

class TokenizerFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = Path(::testing::TempDir()) / ("fathom_text_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    write("tokenizer.json", dump_json(test::byte_level_json()));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, std::string_view text) { std::ofstream(folder_ / name) << text; }
  Path folder_;
};

TEST_F(TokenizerFolder, TemplatesComeFromConfigOrFile) {
  EXPECT_EQ(ChatTemplate::load(folder_).error().key, "text.no_chat_template");
  write(
      "tokenizer_config.json",
      R"({"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "A{{ bos_token }}"}, {"name": "rag", "template": "R"}]})");
  EXPECT_EQ(ChatTemplate::load(folder_)->render(kContext), "A<s>");
  write("chat_template.jinja", "B{{ bos_token }}");
  EXPECT_EQ(ChatTemplate::load(folder_)->render(kContext), "B<s>");
  EXPECT_EQ(ChatTemplate::load(folder_ / "tokenizer.json")->render(kContext), "B<s>");
  write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_EQ(ChatTemplate::load(folder_).error().key, "text.bad_field");
}

TEST_F(TokenizerFolder, LinesAreAnsweredOneByOne) {
  write("chat_template.jinja",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'go' if add_generation_prompt }}");
  const auto lines = JsonLines::open(folder_);
  ASSERT_TRUE(lines) << test::why(lines);
  EXPECT_EQ(lines->answer(R"({"text": "hello<s>"})"), R"({"ids":[259,262],"decoded":"hello<s>"})");
  EXPECT_EQ(lines->answer(R"({"messages": [{"role": "user", "content": "é"}], "add_generation_prompt": true})"),
            "{\"rendered\":\"user: é\\ngo\"}");
  for (const std::string_view bad : {"", "x", "[]", "5", "{}", R"({"text": 5})", R"({"text": "a", "messages": []})",
                                     R"({"text": "\ud800"})", "{\"text\": \"\xff\"}", R"({"messages": 5})"}) {
    const auto answer = parse_json(lines->answer(bad), "answer");
    ASSERT_TRUE(answer) << bad;
    EXPECT_EQ(answer->size(), 1u) << bad;
    EXPECT_TRUE(answer->contains("error")) << bad;
  }
}

}  // namespace
}  // namespace fathom::text
