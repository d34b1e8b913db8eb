// On x86-64 a change of fibers is a few instructions; elsewhere, and where EMULATOR_UCONTEXT asks for it, it is
// ucontext's, which asks the kernel each time.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define EMULATOR_SANITIZED
#endif
#ifdef EMULATOR_SANITIZED
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_ASSEMBLY

// Pushes what a call must keep, leaves the stack's address in *from, goes on with the stack `to`.
extern "C" void emulator_change_stack(void** from, void* to);
asm(R"(
.text
.globl emulator_change_stack
.hidden emulator_change_stack
.type emulator_change_stack,@function
emulator_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_change_stack,.-emulator_change_stack
)");
#else
#include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStack = 256 << 10;

#ifdef EMULATOR_ASSEMBLY
struct Context {
  void* top = nullptr;
};
void prepare(Context& context, char* stack, void (*function)()) {
  void** top = reinterpret_cast<void**>(stack + kStack);
  *--top = nullptr;  // where `function` would return to; it finds the stack aligned as after a call
  *--top = reinterpret_cast<void*>(function);
  for (int kept = 0; kept < 6; ++kept) *--top = nullptr;
  context.top = top;
}
void change(Context& from, Context& to) { emulator_change_stack(&from.top, to.top); }
#else
using Context = ucontext_t;
void prepare(Context& context, char* stack, void (*function)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, function, 0);
}
void change(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

}  // namespace

struct Fiber {
  Context own, others;
  char* stack = nullptr;
  void (*function)() = nullptr;
  void *own_fake = nullptr, *others_fake = nullptr;  // AddressSanitizer's stacks besides the stacks
  const void* others_bottom = nullptr;
  size_t others_size = 0;
};

namespace {

Fiber* entered = nullptr;

void begin() {
#ifdef EMULATOR_SANITIZED
  __sanitizer_finish_switch_fiber(nullptr, &entered->others_bottom, &entered->others_size);
#endif
  entered->function();
  abort();
}

}  // namespace

Fiber* new_fiber() {
  Fiber* fiber = new Fiber;
  void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) abort();
  fiber->stack = static_cast<char*>(stack);
  return fiber;
}

void start_fiber(Fiber* fiber, void (*function)()) {
#ifdef EMULATOR_SANITIZED
  __asan_unpoison_memory_region(fiber->stack, kStack);
  fiber->own_fake = nullptr;
#endif
  fiber->function = function;
  prepare(fiber->own, fiber->stack, &begin);
}

void enter_fiber(Fiber* fiber) {
  entered = fiber;
#ifdef EMULATOR_SANITIZED
  __sanitizer_start_switch_fiber(&fiber->others_fake, fiber->stack, kStack);
#endif
  change(fiber->others, fiber->own);
#ifdef EMULATOR_SANITIZED
  __sanitizer_finish_switch_fiber(fiber->others_fake, nullptr, nullptr);
#endif
}

void leave_fiber(Fiber* fiber, [[maybe_unused]] bool for_ever) {
#ifdef EMULATOR_SANITIZED
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber->own_fake, fiber->others_bottom, fiber->others_size);
#endif
  change(fiber->own, fiber->others);
#ifdef EMULATOR_SANITIZED
  __sanitizer_finish_switch_fiber(fiber->own_fake, &fiber->others_bottom, &fiber->others_size);
#endif
}

}  // namespace emulator
