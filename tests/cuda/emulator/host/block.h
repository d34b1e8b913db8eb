// One block: its threads, which are fibers, and its shared memory.
#pragma once

#include <string>

#include "emulator.h"
#include "order.h"

namespace emulator {

// What a lane of a warp gives to a call of all, and gets.
struct Lane {
  uint64_t value, result;
  int argument;
};

// warp.cpp: the results of a call that all 32 lanes have made.
void answer(Call call, Lane* const (&lanes)[kWarp]);

// Runs the block of blockDim threads that blockIdx names; returns what was wrong, "" for nothing.
std::string run_block(Order order, void (*thread)(const void*), const void* parameters);

bool in_a_kernel();
size_t free_shared_memory();  // of the launch; returns its bytes

}  // namespace emulator
