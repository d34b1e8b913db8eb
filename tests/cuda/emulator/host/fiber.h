// Fibers: functions with a stack of their own, between which the program changes where it says so.
#pragma once

namespace emulator {

struct Fiber;

Fiber* new_fiber();                             // is never deleted: a block's threads use those of the block before
void start_fiber(Fiber*, void (*function)());   // from the beginning, with an empty stack; `function` does not return
void enter_fiber(Fiber*);                       // runs it until it leaves
void leave_fiber(Fiber*, bool for_ever = false);  // called in it: back to whoever entered it

}  // namespace emulator
