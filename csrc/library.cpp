// maskcl._C: facts about the build. Importing it runs the registrations of csrc/cpu; no tensor passes through here.

#include <pybind11/pybind11.h>

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

pybind11::dict build_info() {
  pybind11::dict facts;
  facts["compiler"] = compiler();
  facts["cxx_standard"] = static_cast<long>(__cplusplus);
  facts["python"] = std::to_string(PY_MAJOR_VERSION) + "." + std::to_string(PY_MINOR_VERSION);
  facts["torch_target"] = version_of(TORCH_FEATURE_VERSION);
  facts["torch_build"] = MASKCL_TORCH_BUILD;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of maskcl's CPU kernels.";
  m.def("build_info", &build_info,
        "Compiler, C++ standard, Python, the oldest torch served and the torch whose headers were used.");
}
