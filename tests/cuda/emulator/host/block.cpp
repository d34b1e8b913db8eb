#include "block.h"

#include <cstdlib>
#include <cstring>
#include <map>

#include "fiber.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

enum class State { ready, at_barrier, at_call, ended };

struct Thread {
  Fiber* fiber = nullptr;
  State state = State::ended;
  dim3 index;
  Location at;  // where it waits
  Call call{};
  Lane lane{};
};

Thread threads[kMostThreads];
int count = 0, running = -1;
int ended = 0, at_barrier = 0;
int at_call[kMostThreads / kWarp];  // lanes of each warp
Ready ready;
std::string error;
void (*function)(const void*) = nullptr;
const void* arguments = nullptr;

struct Shared {
  void* data;
  size_t bytes;
};
std::map<const void*, Shared> shared_memory;

std::string where(int thread) {
  const Thread& t = threads[thread];
  std::string text = "thread " + std::to_string(thread);
  if (t.state == State::ended) return text + " has ended";
  text += t.state == State::at_barrier ? " waits for its block at " : " waits for its warp at ";
  return text + t.at.file + ":" + std::to_string(t.at.line);
}

bool same_place(const Thread& a, const Thread& b) {
  return a.state == b.state && a.at.line == b.at.line && !strcmp(a.at.file, b.at.file);
}

// Nothing can go on: two threads of which one waits and the other is elsewhere.
void report_stuck() {
  int waits = 0;
  while (threads[waits].state == State::ended) ++waits;
  const bool warp = threads[waits].state == State::at_call;
  const int first = warp ? waits / kWarp * kWarp : 0, last = warp ? first + kWarp : count;
  if (last > count) error = where(waits) + ", of which there are not 32 threads";
  for (int other = first; other < last && error.empty(); ++other)
    if (!same_place(threads[waits], threads[other])) error = where(waits) + ", " + where(other);
}

void release(int first, int last) {
  for (int i = first; i < last; ++i) threads[i].state = State::ready;
}

void thread_main() {
  function(arguments);
  threads[running].state = State::ended;
  ++ended;
  leave_fiber(threads[running].fiber, true);
}

void wait(State state, const Location& at) {
  Thread& t = threads[running];
  t.state = state, t.at = at;
  leave_fiber(t.fiber);
}

// The calls of a warp whose lanes all wait; at different calls they stay, and are reported.
void answer_warp(int first) {
  Lane* lanes[kWarp];
  for (int l = 0; l < kWarp; ++l) {
    if (!same_place(threads[first], threads[first + l]) || threads[first].call != threads[first + l].call) return;
    lanes[l] = &threads[first + l].lane;
  }
  at_call[first / kWarp] = 0;
  answer(threads[first].call, lanes);
  release(first, first + kWarp);
  for (int l = 0; l < kWarp; ++l) ready.add(first + l);
}

void open_barrier() {
  for (int i = 1; i < count; ++i)
    if (!same_place(threads[0], threads[i])) return report_stuck();
  at_barrier = 0;
  release(0, count);
  ready.add_all(count);
}

}  // namespace

bool in_a_kernel() { return running >= 0; }

void fail(const std::string& what) {
  if (error.empty()) error = what + " (thread " + std::to_string(running) + ")";
  leave_fiber(threads[running].fiber);
  abort();  // nobody enters a thread of a block that failed
}

void barrier(const Location& at) {
  ++at_barrier;
  wait(State::at_barrier, at);
}

uint64_t together(Call call, unsigned lanes, uint64_t value, int argument, const Location& at) {
  if (lanes != 0xffffffffu) fail("a call of part of a warp, which the emulator does not know");
  Thread& t = threads[running];
  t.call = call;
  t.lane = {value, 0, argument};
  ++at_call[running / kWarp];
  wait(State::at_call, at);
  return t.lane.result;
}

void* shared(const void* declaration, size_t bytes, size_t alignment) {
  Shared& found = shared_memory[declaration];
  if (found.data == nullptr) {
    found.bytes = bytes;
    if (posix_memalign(&found.data, std::max(alignment, sizeof(void*)), bytes)) abort();
    memset(found.data, 0xff, bytes);
  }
  return found.data;
}

size_t free_shared_memory() {
  size_t bytes = 0;
  for (const auto& [declaration, memory] : shared_memory) {
    bytes += memory.bytes;
    free(memory.data);
  }
  shared_memory.clear();
  return bytes;
}

std::string run_block(Order order, void (*thread)(const void*), const void* parameters) {
  count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  function = thread, arguments = parameters;
  ended = at_barrier = 0;
  memset(at_call, 0, sizeof(at_call));
  error.clear();
  for (const auto& [declaration, memory] : shared_memory) memset(memory.data, 0xff, memory.bytes);  // NaN, or -1
  for (unsigned i = 0; i < static_cast<unsigned>(count); ++i) {
    Thread& t = threads[i];
    if (t.fiber == nullptr) t.fiber = new_fiber();
    start_fiber(t.fiber, &thread_main);
    t.state = State::ready;
    t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  }
  ready.start(order);
  ready.add_all(count);
  while (ended < count && error.empty()) {
    if (ready.empty()) {
      at_barrier == count ? open_barrier() : report_stuck();
      continue;
    }
    running = ready.take();
    threadIdx = threads[running].index;
    enter_fiber(threads[running].fiber);
    if (threads[running].state == State::at_call && at_call[running / kWarp] == kWarp)
      answer_warp(running / kWarp * kWarp);
  }
  running = -1;
  return error;
}

}  // namespace emulator
