// In which order threads that can go on do so. CUDA promises none, so results must not depend on it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace emulator {

constexpr int kMostThreads = 1024, kWarp = 32;

// ahead: the warp that went on last goes on, as far as barriers let it, while the others have not begun.
enum class Order { forward, reversed, random, ahead, any };

inline std::mt19937_64 chance;

// Threads that can go on, each at most once.
class Ready {
 public:
  void start(Order order) {
    order_ = order == Order::any ? static_cast<Order>(chance() % 4) : order;
    first_ = count_ = 0;
  }

  bool empty() const { return count_ == 0; }

  void add(int thread) { at(count_++) = thread; }

  // All of [0, threads), as they begin or leave a barrier.
  void add_all(int threads) {
    std::array<int, kMostThreads> all;
    std::iota(all.begin(), all.begin() + threads, 0);
    if (order_ == Order::reversed) std::reverse(all.begin(), all.begin() + threads);
    if (order_ == Order::ahead) shuffle_warps(all, threads);
    for (int i = 0; i < threads; ++i) add(all[i]);
  }

  int take() {
    if (order_ == Order::ahead) return at(--count_);
    if (order_ == Order::random) std::swap(at(0), at(static_cast<int>(chance() % count_)));
    const int thread = at(0);
    first_ = (first_ + 1) % kMostThreads;
    --count_;
    return thread;
  }

 private:
  int& at(int i) { return ring_[(first_ + i) % kMostThreads]; }

  static void shuffle_warps(std::array<int, kMostThreads>& all, int threads) {
    std::array<int, kMostThreads / kWarp> warps;
    const int count = (threads + kWarp - 1) / kWarp;
    std::iota(warps.begin(), warps.begin() + count, 0);
    std::shuffle(warps.begin(), warps.begin() + count, chance);
    int i = 0;
    for (int w = 0; w < count; ++w)
      for (int lane = 0; lane < kWarp; ++lane)
        if (const int thread = warps[w] * kWarp + lane; thread < threads) all[i++] = thread;
  }

  Order order_ = Order::forward;
  std::array<int, kMostThreads> ring_;
  int first_ = 0, count_ = 0;
};

// The blocks of a grid in the order in which they run.
inline std::vector<uint32_t> order_of_blocks(uint32_t blocks, Order order) {
  std::vector<uint32_t> all(blocks);
  std::iota(all.begin(), all.end(), 0);
  if (order == Order::any) order = static_cast<Order>(chance() % 4);
  if (order == Order::reversed) std::reverse(all.begin(), all.end());
  if (order == Order::random || order == Order::ahead) std::shuffle(all.begin(), all.end(), chance);
  return all;
}

}  // namespace emulator
