// Launches, and what the tests tell the emulator and ask of it.
#include <cxxabi.h>

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <utility>

#include "block.h"

namespace emulator {
namespace {

constexpr unsigned kMostBlocksX = 0x7fffffff, kMostBlocks = 65535;
constexpr uint64_t kThreads = 256;  // of maskcl's kernels, which all are compiled for blocks of at most so many
constexpr size_t kMostShared = 48 << 10;

Instance* instances = nullptr;
Order order = Order::any;
std::string refused, unchecked;  // the last launch's error; its kernel, until it is checked
int current_device = 0, device_of_tensors = 0, version_of_ptx = 90;
std::map<const void*, int> placed;  // tensors that are elsewhere, by their data

std::string wrong_with(const Configuration& c) {
  const uint64_t threads = uint64_t{c.block.x} * c.block.y * c.block.z;
  if (c.grid.x == 0 || c.grid.y == 0 || c.grid.z == 0) return "the grid is empty";
  if (c.grid.x > kMostBlocksX || c.grid.y > kMostBlocks || c.grid.z > kMostBlocks) return "the grid is too large";
  if (threads == 0 || threads > kThreads) return "a block has " + std::to_string(threads) + " threads";
  if (c.stream != stream_of(current_device)) return "the stream is not of the current device";
  return "";
}

}  // namespace

// A type's name has all of the kernel's template arguments; of a function's own name clang leaves them out.
Instance* enlist(const std::type_info& kernel) {
  char* text = abi::__cxa_demangle(kernel.name(), nullptr, nullptr, nullptr);
  if (text == nullptr) abort();
  instances = new Instance{text, 0, instances};
  free(text);
  return instances;
}

void launch(Instance& instance, const Configuration& c, void (*thread)(const void*), const void* parameters) {
  const std::string& name = instance.name;
  if (in_a_kernel()) throw std::logic_error(name + " is launched in a kernel");
  if (!unchecked.empty()) throw std::logic_error(std::exchange(unchecked, "") + ": no check follows its launch");
  unchecked = name;
  refused = wrong_with(c);
  if (!refused.empty()) return;
  ++instance.launches;
  blockDim = c.block, gridDim = c.grid;
  std::string error;
  for (const uint32_t block : order_of_blocks(c.grid.x * c.grid.y * c.grid.z, order)) {
    blockIdx = {block % c.grid.x, block / c.grid.x % c.grid.y, block / c.grid.x / c.grid.y};
    error = run_block(order, thread, parameters);
    if (!error.empty()) break;
  }
  const size_t shared = c.shared + free_shared_memory();
  if (shared > kMostShared) refused = "a block has " + std::to_string(shared) + " bytes of shared memory";
  if (error.empty()) return;
  unchecked.clear();
  throw std::runtime_error(name + ", block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + ": " +
                           error);
}

void check_launch() {
  const std::string name = std::exchange(unchecked, ""), what = std::exchange(refused, "");
  if (!what.empty()) throw std::runtime_error(name + ": " + what);
}

int device_of(const void* data) {
  const auto found = placed.find(data);
  return found == placed.end() ? device_of_tensors : found->second;
}

cudaStream_t stream_of(int device) { return reinterpret_cast<cudaStream_t>(intptr_t{1000} + device); }

int ptx_version() { return version_of_ptx; }

DeviceGuard::DeviceGuard(int device) : before_(current_device) { current_device = device; }
DeviceGuard::~DeviceGuard() { current_device = before_; }

}  // namespace emulator

// --- for Python (device.py) ------------------------------------------------------------------------------------------

#pragma GCC visibility push(default)
extern "C" {

void emulator_order(int order, uint64_t seed) {
  emulator::order = static_cast<emulator::Order>(order);
  emulator::chance.seed(seed);
  emulator::unchecked.clear();
}

void emulator_devices(int current, int of_tensors) {
  emulator::current_device = current;
  emulator::device_of_tensors = of_tensors;
  emulator::placed.clear();
}

void emulator_place(const void* data, int device) { emulator::placed[data] = device; }

void emulator_ptx(int version) { emulator::version_of_ptx = version; }

const char* emulator_unchecked() { return emulator::unchecked.c_str(); }

// A line for each kernel instance: how often it was launched, and its name.
const char* emulator_launches() {
  static std::string text;
  text.clear();
  for (const emulator::Instance* i = emulator::instances; i; i = i->next)
    text += std::to_string(i->launches) + " " + i->name + "\n";
  return text.c_str();
}
}
#pragma GCC visibility pop
