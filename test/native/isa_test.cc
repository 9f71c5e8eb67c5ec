// The choice of an instruction set. If the environment's EXPECTED_ISA names one, that must be the
// best of this CPU: so that it is sure which kernels are tested on an emulated one.
#include "cpu/isa.h"

#include "check.h"

namespace slicellm {
namespace {

using cpu::Isa;

void test_choice() {
  const std::vector<Isa> isas = cpu::supported_isas();
  CHECK(!isas.empty() && isas.back() == Isa::portable);
  CHECK(cpu::choose_isa("") == isas.front());
  for (Isa isa : isas) {
    CHECK(cpu::is_supported(isa));
    CHECK(cpu::choose_isa(to_string(isa)) == isa);
  }
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::neon, Isa::dotprod, Isa::i8mm}) {
    if (cpu::is_supported(isa)) continue;
    CHECK(test::throws(ErrorKind::invalid_argument, "isa",
                       [isa] { cpu::choose_isa(to_string(isa)); }));
  }
  CHECK(test::throws(ErrorKind::invalid_argument, "isa", [] { cpu::choose_isa("sse"); }));
#if defined(__aarch64__)
  CHECK(cpu::is_supported(Isa::neon) && !cpu::is_supported(Isa::avx2));
#else
  CHECK(!cpu::is_supported(Isa::neon));
#endif
}

}  // namespace
}  // namespace slicellm

int main() {
  using namespace slicellm;
  test_choice();
  if (const char* expected = std::getenv("EXPECTED_ISA")) {
    const std::string best = to_string(cpu::choose_isa(""));
    CHECK_MESSAGE(best == expected, "the best instruction set is " + best);
  }
  return test::check_result();
}
