// Facts about the build of the CPU library. Loading it runs the registrations of csrc/cpu; it knows nothing of Python.

#include <torch/csrc/stable/version.h>

#include <string>

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::string version_of(uint64_t packed) {
  return std::to_string(packed >> 56) + "." + std::to_string((packed >> 48) & 0xff);
}

}  // namespace

// Compiler, C++ standard, the oldest torch served and the torch whose headers were used: a line "key=value" each.
extern "C" __attribute__((visibility("default"))) const char* maskcl_build_info() {
  static const std::string facts = "compiler=" + compiler() +                                  //
                                   "\ncxx_standard=" + std::to_string(__cplusplus) +           //
                                   "\ntorch_target=" + version_of(TORCH_FEATURE_VERSION) +     //
                                   "\ntorch_build=" MASKCL_TORCH_BUILD;
  return facts.c_str();
}
