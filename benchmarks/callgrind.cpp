// Requests to callgrind for Python, through ctypes; outside valgrind they do nothing.
#include <valgrind/callgrind.h>

extern "C" {
int on_valgrind() { return RUNNING_ON_VALGRIND; }
void start() { CALLGRIND_START_INSTRUMENTATION; }
void zero() { CALLGRIND_ZERO_STATS; }
void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
}
