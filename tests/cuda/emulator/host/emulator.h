// What a rewritten kernel sees of the emulator; README.md says how it works.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the thread that runs; one does at a time
using cudaStream_t = void*;

namespace emulator {

// What std::source_location is; with g++'s library clang has that only from version 16 on.
struct Location {
  const char* file = "";
  unsigned line = 0;
  static constexpr Location current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

// --- inside a kernel -------------------------------------------------------------------------------------------------

[[noreturn]] void fail(const std::string& what);  // ends the launch; its caller gets `what` as an exception
void barrier(const Location& at);                 // __syncthreads

// A call that all lanes of a warp make together. `value` is the bits of what a lane gives; the result's bits come back.
enum class Call { shuffle, shuffle_xor, ballot, multiply_bf16, multiply_f16 };
uint64_t together(Call call, unsigned lanes, uint64_t value, int argument, const Location& at);

template <bool Xor, typename T>
T shuffle(unsigned lanes, T value, int argument, const Location& at) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = together(Xor ? Call::shuffle_xor : Call::shuffle, lanes, bits, argument, at);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned ballot(unsigned lanes, bool predicate, const Location& at) {
  return static_cast<unsigned>(together(Call::ballot, lanes, predicate, 0, at));
}

// One lane's registers of mma.m16n8k16: pairs of halves of a and b, float32 of d, which is also what is added to.
struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};

inline void multiply(Call call, float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2,
                     uint32_t a3, uint32_t b0, uint32_t b1, const Location& at) {
  Fragments mine{{a0, a1, a2, a3}, {b0, b1}, {d0, d1, d2, d3}};
  together(call, 0xffffffffu, reinterpret_cast<uint64_t>(&mine), 0, at);
  d0 = mine.d[0], d1 = mine.d[1], d2 = mine.d[2], d3 = mine.d[3];
}

// The block's copy of a __shared__ array, which is known by the address of something at its declaration.
void* shared(const void* declaration, size_t bytes, size_t alignment);

inline void assert_that(bool holds, const char* text, const Location& at) {
  if (!holds) fail(std::string(at.file) + ":" + std::to_string(at.line) + ": assertion failed: " + text);
}

// --- launches --------------------------------------------------------------------------------------------------------

// A kernel with its template arguments. Each one that is compiled is in a list, so that those never run can be named.
struct Instance {
  std::string name;
  long launches;
  Instance* next;
};
Instance* enlist(const std::type_info& kernel);

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

void launch(Instance& instance, const Configuration& configuration, void (*thread)(const void*),
            const void* parameters);
void check_launch();  // throws what was wrong with the last launch's configuration, as cudaGetLastError tells it

template <auto Function>
struct Kernel;

template <typename... P, void (*Function)(P...)>
struct Kernel<Function> {
  using Parameters = std::tuple<std::remove_cvref_t<P>...>;  // a copy, as the GPU gets one
  static constexpr size_t kMostParameters = 32764;
  static_assert((sizeof(std::remove_cvref_t<P>) + ... + 0) <= kMostParameters);

  static Instance* enlisted() { return enlist(typeid(Kernel)); }
  static inline Instance* instance = enlisted();
  Configuration configuration;

  void operator()(const std::remove_cvref_t<P>&... arguments) const {
    const Parameters parameters(arguments...);
    const auto thread = [](const void* parameters) {
      std::apply([](const auto&... p) { Function(p...); }, *static_cast<const Parameters*>(parameters));
    };
    launch(*instance, configuration, thread, &parameters);
  }
};

// --- devices ---------------------------------------------------------------------------------------------------------

int device_of(const void* data);  // -1: the host
cudaStream_t stream_of(int device);
int ptx_version();

template <typename Tensor>
bool is_cuda(const Tensor& tensor) {
  return device_of(tensor.const_data_ptr()) >= 0;
}
template <typename Tensor>
int get_device_index(const Tensor& tensor) {
  return device_of(tensor.const_data_ptr());
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int before_;
};

}  // namespace emulator
