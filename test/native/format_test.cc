// Readers of model files against damaged input. Run under AddressSanitizer and UBSan this shows
// that whatever a file says, nothing outside its bytes is read and no arithmetic overflows.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "format/json.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

namespace fs = std::filesystem;

// Little-endian bytes of a file in the making.
class Bytes {
 public:
  Bytes& i32(std::initializer_list<int64_t> values) {
    for (const int64_t value : values) put(static_cast<uint32_t>(value));
    return *this;
  }
  Bytes& f32(std::initializer_list<float> values) {
    for (const float value : values) put(value);
    return *this;
  }
  Bytes& text(const std::string& value) {
    i32({static_cast<int64_t>(value.size())});
    data += value;
    return *this;
  }
  Bytes& raw(size_t count, char value) {
    data.append(count, value);
    return *this;
  }
  std::string data;

 private:
  template <class T>
  void put(T value) {
    data.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
};

// A sound .flm with every section and type.
std::string sound_flm() {
  Bytes b;
  b.i32({2, 4}).text("model_type").text("llama").text("peft_size").text("1");
  b.text("tokenizer_use_score").text("1").text("tokenizer_has_special_tokens").text("1");
  b.text("lora").i32({1}).text("r").text("8");
  b.i32({2, 2, 'h', 'i', 0}).f32({-1}).i32({1, -61, 1}).f32({0.5f});  // -61: a sign-extended byte
  b.i32({1}).text("<s>");
  b.i32({6});
  b.text("f32").i32({2, 2, 3, 0}).f32({1, 2, 3, 4, 5, 6});
  b.text("f16").i32({1, 3, 7}).raw(6, 0x3c);
  b.text("bf16").i32({1, 3, 1}).raw(6, 0x3f);
  b.text("i8").i32({2, 2, 3, 3, 0}).f32({-1, 1, 0, 2}).raw(6, 0x7f);
  b.text("i4").i32({2, 3, 3, 8, 0}).f32({-1, 1, 0, 2, 0, 0}).raw(5, 0x5a);
  b.text("i4g").i32({2, 2, 5, 9, 0, 3, 2});
  for (int i = 0; i < 6; ++i) b.f32({-1, 1});
  b.raw(5, 0x5a);
  return b.data;
}

std::string with_length(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

// A sound safetensors file with plain tensors and blobs.
std::string sound_safetensors() {
  Bytes b;
  b.raw(12, 1);
  b.i32({1, 8, 0}).f32({-1, 0.5f, 0, 0.25f}).raw(3, 0x5a);
  const size_t second = b.data.size();
  b.i32({1, 9, 0, 2, 2}).f32({-1, 0.5f, 0, 0.25f}).raw(2, 0x5a);
  const std::string end = std::to_string(b.data.size()), middle = std::to_string(second);
  return with_length(R"({"__metadata__":{"format":"pt"},)"
                     R"("a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},)"
                     R"("b":{"dtype":"fastllm","shape":[2,3],"data_offsets":[12,)" +
                         middle + R"(]},"c":{"dtype":"fastllm","shape":[1,3],"data_offsets":[)" +
                         middle + "," + end + "]}}",
                     b.data);
}

class Scratch {
 public:
  Scratch() : path_(fs::temp_directory_path() / ("format_test-" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
    std::ofstream(path_ / "config.json") << R"({"model_type": "llama", "heads": [1, 2]})";
  }
  ~Scratch() { fs::remove_all(path_); }
  std::string directory() const { return path_.string(); }
  std::string flm() const { return (path_ / "model.flm").string(); }
  void write(const std::string& name, const std::string& bytes) const {
    fs::remove(path_ / name);  // file systems are slow to empty a file and write it again
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }

 private:
  fs::path path_;
};

// Opens and decodes everything. True: it was sound; false: it was refused with an Error.
bool read_all(const std::string& path) {
  try {
    const auto file = open_model_file(path);
    std::vector<float> values;
    for (const std::string& name : file->names()) {
      const Weight w = file->weight(name);
      int64_t count = 1;
      for (const int64_t dim : w.shape) count *= dim;
      values.resize(static_cast<size_t>(count));
      decode(w, 0, count, values.data());
    }
    return true;
  } catch (const Error& e) {
    CHECK_MESSAGE(!e.field().empty() && !e.value().empty() && !e.expected().empty(), e.what());
    return false;
  }
}

// Every prefix, every int32 position with absurd values, and random bytes.
template <class Store>
void damage(const std::string& sound, const std::string& path, Store&& store) {
  store(sound);
  CHECK(read_all(path));
  for (size_t length = 0; length < sound.size(); ++length) {
    store(sound.substr(0, length));
    CHECK_MESSAGE(!read_all(path), "cut at " + std::to_string(length));
  }
  const uint32_t values[] = {0,          1,          0xffffffffu, 0x7fffffffu,
                             0x80000000, 0x40000000, 0x00010000u, 0x7fc00000u};
  for (size_t at = 0; at + 4 <= sound.size(); ++at) {
    for (const uint32_t value : values) {
      std::string bytes = sound;
      std::memcpy(bytes.data() + at, &value, sizeof(value));
      store(bytes);
      read_all(path);
    }
  }
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = sound;
    for (uint32_t i = 0; i <= random() % 3; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    store(bytes);
    read_all(path);
  }
}

void test_damaged_flm() {
  const Scratch scratch;
  damage(sound_flm(), scratch.flm(),
         [&](const std::string& bytes) { scratch.write("model.flm", bytes); });
}

void test_damaged_safetensors() {
  const Scratch scratch;
  damage(sound_safetensors(), scratch.directory(),
         [&](const std::string& bytes) { scratch.write("model.safetensors", bytes); });
}

void test_decode_from_any_element() {
  const Scratch scratch;
  scratch.write("model.flm", sound_flm());
  const auto file = open_model_file(scratch.flm());
  for (const std::string& name : file->names()) {
    const Weight w = file->weight(name);
    const int64_t count = w.rows() * w.cols();
    std::vector<float> all(static_cast<size_t>(count));
    decode(w, 0, count, all.data());
    for (int64_t first = 0; first <= count; ++first) {
      for (int64_t length = 0; first + length <= count; ++length) {
        std::vector<float> some(static_cast<size_t>(length));
        decode(w, first, length, some.data());
        CHECK(std::equal(some.begin(), some.end(), all.begin() + first));
      }
    }
  }
}

void test_round_trip() {
  const Scratch scratch;
  scratch.write("model.flm", sound_flm());
  const auto file = open_model_file(scratch.flm());
  ModelWriteRequest request;
  request.config = file->config();
  request.vocab = file->vocab();
  request.names = file->names();
  request.weight = [&](const std::string& name) { return file->weight(name); };
  write_flm(scratch.flm(), request, nullptr);  // over the file that is mapped
  request.shard_bytes = 8;
  write_export_dir(scratch.directory(), request, nullptr);
  for (const std::string& path : {scratch.flm(), scratch.directory()}) {
    const auto copy = open_model_file(path);
    for (const std::string& name : request.names) {
      const Weight a = file->weight(name), b = copy->weight(name);
      CHECK(a.dtype == b.dtype && a.shape == b.shape && a.group_size == b.group_size);
      for (size_t i = 0; i < a.scale.size(); ++i) {  // a scale of 0 becomes one of 2^-100
        CHECK(std::fabs(a.scale[i] - b.scale[i]) <= 0x1p-100f && a.minimum[i] == b.minimum[i]);
      }
      CHECK(a.data_bytes == b.data_bytes && std::memcmp(a.data, b.data, a.data_bytes) == 0);
    }
  }
}

bool is_json(const std::string& text) {
  try {
    parse_json(text, "test");
    return true;
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::format && e.field() == "test");
    return false;
  }
}

void test_json() {
  for (const char* text : {"null", " true ", "-0", "0.5e-7", "1E+2", "[]", "{}", "[1,[2,{}]]",
                           R"("\u00e9\ud83d\ude00\n\"\/")", R"({"":{"a":1},"b":[null,false]})"}) {
    CHECK_MESSAGE(is_json(text), text);
  }
  for (const char* text : {"",
                           " ",
                           "nul",
                           "True",
                           "NaN",
                           "-",
                           "01",
                           "1.",
                           ".5",
                           "1e",
                           "+1",
                           "0x1",
                           "[",
                           "]",
                           "[1,]",
                           "[1 2]",
                           "{",
                           "{1:2}",
                           R"({"a"})",
                           R"({"a":})",
                           R"({"a":1,})",
                           R"({"a":1,"a":2})",
                           "\"",
                           R"("\x")",
                           R"("\u12")",
                           R"("\ud800")",
                           R"("\ud800\u0041")",
                           R"("\udc00")",
                           "\"\n\"",
                           "\"\xff\"",
                           "\"\xc0\x80\"",
                           "1 2",
                           "// 1",
                           "\xef\xbb\xbf{}"}) {
    CHECK_MESSAGE(!is_json(text), text);
  }
  CHECK(is_json(std::string(64, '[') + std::string(64, ']')));
  CHECK(!is_json(std::string(65, '[') + std::string(65, ']')));
  CHECK(!is_json(std::string(1'000'000, '[')));
  std::string many = "[";
  for (int i = 0; i < 1'100'000; ++i) many += "0,";
  CHECK(!is_json(many + "0]"));

  const JsonValue value = parse_json(R"({"b":"x\u00e9\ud83d\ude00","a":[1,{"c":null}]})", "test");
  CHECK(value.require("b", "test").as_string("b") == "x\xc3\xa9\xf0\x9f\x98\x80");
  CHECK(json_to_text(value.require("a", "test")) == R"([1, {"c": null}])");
  CHECK(value.find("d") == nullptr);
  CHECK(parse_json(json_quote("a\"\\\n\x01\xc3\xa9"), "test").text == "a\"\\\n\x01\xc3\xa9");
  CHECK(parse_json("18446744073709551615", "test").as_uint("n") == 0xffffffffffffffffu);
  for (const char* text : {"18446744073709551616", "-1", "1.0", "1e3", "\"1\"", "null"}) {
    CHECK(test::throws(ErrorKind::format, "n", [&] { parse_json(text, "test").as_uint("n"); }));
  }
}

void test_checked_arithmetic() {
  const uint64_t most = ~uint64_t{0};
  CHECK(checked_mul(most, 1, "n") == most && checked_mul(0, most, "n") == 0);
  CHECK(checked_mul(1u << 31, 1u << 31, "n") == uint64_t{1} << 62);
  CHECK(checked_add(most - 1, 1, "n") == most);
  CHECK(test::throws(ErrorKind::format, "n", [&] { checked_mul(most, 2, "n"); }));
  CHECK(test::throws(ErrorKind::format, "n", [&] { checked_mul(1ull << 32, 1ull << 32, "n"); }));
  CHECK(test::throws(ErrorKind::format, "n", [&] { checked_add(most, 1, "n"); }));
}

void test_config() {
  Config config;
  config.values = {{"i", " 42 "},        {"f", "1e-05"},   {"t", "True"},   {"no", "false"},
                   {"none", "None"},     {"null", "null"}, {"empty", ""},   {"list", "[1, 2]"},
                   {"float_int", "2.0"}, {"bad", "12x"},   {"part", "2.5"}, {"trail", "[1,]"},
                   {"huge", "1e999"},    {"open", "[1"},   {"s", "text"}};
  CHECK(config.require_int("i") == 42 && config.get_int("float_int", 0) == 2);
  CHECK(config.get_float("f", 0) == 1e-05 && config.get_float("absent", 3) == 3);
  CHECK(config.get_bool("t", false) && !config.get_bool("no", true));
  for (const char* key : {"none", "null", "empty", "absent"}) {
    CHECK(!config.has(key) && config.get_int(key, 7) == 7 && config.get_ints(key).empty());
    CHECK(config.get_string(key, "other") == "other" && config.get_bool(key, true));
  }
  CHECK((config.get_ints("list") == std::vector<int64_t>{1, 2}));
  CHECK((config.get_ints("i") == std::vector<int64_t>{42}));
  CHECK(config.get_string("s", "") == "text");
  const auto refused = [&](const char* key, auto&& get) {
    CHECK_MESSAGE(test::throws(ErrorKind::format, key, get), key);
  };
  refused("bad", [&] { config.get_int("bad", 0); });
  refused("part", [&] { config.get_int("part", 0); });
  refused("huge", [&] { config.get_float("huge", 0); });
  refused("s", [&] { config.get_bool("s", false); });
  refused("trail", [&] { config.get_ints("trail"); });
  refused("open", [&] { config.get_ints("open"); });
  refused("none", [&] { config.require_int("none"); });
}

}  // namespace
}  // namespace slicellm

int main() {
  slicellm::test_checked_arithmetic();
  slicellm::test_config();
  slicellm::test_json();
  slicellm::test_decode_from_any_element();
  slicellm::test_round_trip();
  slicellm::test_damaged_flm();
  slicellm::test_damaged_safetensors();
  return slicellm::test::check_result();
}
