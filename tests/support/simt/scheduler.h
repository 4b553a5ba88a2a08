// A grid run on one host thread: a block's threads are coroutines that give way at barriers, in a seeded order.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

extern "C" char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {
struct Index { unsigned x, y, z; };
enum State { READY, AT_BLOCK, AT_WARP, DONE };
struct Thread {
    Index index;
    unsigned number, mask;
    State state;
    int line;  // of the barrier it waits at
    bool started;
    ucontext_t context;
    jmp_buf resume;
    int lane() const { return (int)(number % 32); }
};
struct Warp { char slot[32][8]; };

static const size_t STACK_BYTES = 256 << 10, CANARY_BYTES = 256;
static Thread* now;
static Index block_index;
static dim3 block_size, grid_size;
static std::vector<Thread> threads;
static std::vector<Warp> warps;
static std::vector<unsigned char> dynamic_bytes;
static char* stacks;
static jmp_buf scheduler;
static sigjmp_buf abandoned;
static char message[512];

// Weyl's sequence, mixed: an order for blocks and threads, not statistics.
struct Random {
    uint64_t state;
    uint32_t below(uint32_t bound) {
        state += 0x9E3779B97F4A7C15u;
        uint64_t mixed = (state ^ state >> 31) * 0xBF58476D1CE4E5B9u;
        return (uint32_t)((mixed >> 32) * bound >> 32);
    }
    template <class T> void shuffle(std::vector<T>& items) {
        for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below((uint32_t)i)]);
    }
};

inline Warp& warp() { return warps[now->number / 32]; }
inline void* dynamic_shared() {
    // 16-byte alignment as on a device, whatever vector gave.
    return (void*)(((uintptr_t)dynamic_bytes.data() + 127) & ~(uintptr_t)127);
}

[[noreturn]] inline void abandon() { siglongjmp(abandoned, 1); }
template <class... A> [[noreturn]] void fail(const char* format, A... values) {
    int used = snprintf(message, sizeof message, "block (%u, %u, %u): ", block_index.x, block_index.y, block_index.z);
    snprintf(message + used, sizeof message - used, format, values...);
    abandon();
}
static void on_signal(int number, siginfo_t* info, void*) {
    bool outside = number == SIGSEGV || number == SIGBUS;
    const char* what = outside ? "address outside every array"
                               : "misaligned access, index out of range, overflow or division by zero";
    snprintf(message, sizeof message, "block (%u, %u, %u), thread %u: %s (signal %d at %p)", block_index.x,
             block_index.y, block_index.z, now ? now->number : 0, what, number, info->si_addr);
    abandon();
}

__attribute__((noinline)) static void give_way(State state, unsigned mask, int line) {
    now->state = state;
    now->mask = mask;
    now->line = line;
    if (!_setjmp(now->resume)) _longjmp(scheduler, 1);
}
inline void sync_block(int line) { give_way(AT_BLOCK, 0, line); }
inline void sync_warp(unsigned mask, int line) {
    if (!(mask >> now->lane() & 1)) fail("thread %u at line %d is not in its own mask %08x", now->number, line, mask);
    give_way(AT_WARP, mask, line);
}

static void (*body)();
static void run_body() {
    body();
    now->state = DONE;
    _longjmp(scheduler, 1);
}

// Switches to the thread until it gives way or ends.
__attribute__((noinline)) static void resume(Thread* thread) {
    now = thread;
    if (_setjmp(scheduler)) return;
    if (thread->started) _longjmp(thread->resume, 1);
    thread->started = true;
    setcontext(&thread->context);
}

// Lets those go on whose whole mask waits at the same line; whether any thread of the warp can run.
static bool release_warp(Thread* first, size_t count) {
    bool ready = false;
    for (Thread* thread = first; thread < first + count; ++thread) {
        if (thread->state == AT_WARP) {
            // A block's last warp may be short: lanes that never were are not waited for.
            unsigned mask = thread->mask & (count == 32 ? ~0u : (1u << count) - 1), waiting = 0;
            for (size_t lane = 0; lane < count; ++lane) {
                const Thread& partner = first[lane];
                if (!(mask >> lane & 1)) continue;
                if (partner.state == DONE)
                    fail("thread %u waits at line %d for thread %u, which has ended", thread->number, thread->line,
                         partner.number);
                if (partner.state == AT_WARP && partner.mask == thread->mask && partner.line == thread->line)
                    waiting |= 1u << lane;
            }
            if (waiting == mask)
                for (size_t lane = 0; lane < count; ++lane)
                    if (mask >> lane & 1) first[lane].state = READY;
        }
        ready |= thread->state == READY;
    }
    return ready;
}

static void release_block() {
    const Thread* first = nullptr;
    for (Thread& thread : threads) {
        if (thread.state == READY) return;
        if (thread.state == AT_WARP) fail("thread %u waits at line %d for ever", thread.number, thread.line);
        if (thread.state == AT_BLOCK && !first) first = &thread;
    }
    if (!first) return;
    for (Thread& thread : threads) {
        if (thread.state == DONE)
            fail("thread %u waits at line %d for thread %u, which has ended", first->number, first->line, thread.number);
        if (thread.line != first->line)
            fail("thread %u waits at line %d, thread %u at line %d", first->number, first->line, thread.number,
                 thread.line);
    }
    for (Thread& thread : threads) thread.state = READY;
}

static size_t warp_size(size_t first) { return threads.size() - first < 32 ? threads.size() - first : 32; }
static bool all_done() {
    for (Thread& thread : threads)
        if (thread.state != DONE) return false;
    return true;
}

static void run_block(size_t shared_bytes, Random& random) {
    // All ones: NaN in every floating type.
    if (__start_simt_shared) memset(__start_simt_shared, 0xFF, __stop_simt_shared - __start_simt_shared);
    memset(dynamic_bytes.data(), 0xFF, dynamic_bytes.size());
    for (Thread& thread : threads) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks + thread.number * STACK_BYTES;
        thread.context.uc_stack.ss_size = STACK_BYTES;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, run_body, 0);
        thread.started = false;
        thread.state = READY;
    }
    // One warp runs far ahead of the others, as far as barriers let it, most of the time: what it writes too early or
    // reads too late then shows.
    std::vector<size_t> ready;
    for (;;) {
        ready.clear();
        for (size_t first = 0; first < threads.size(); first += 32)
            if (release_warp(&threads[first], warp_size(first))) ready.push_back(first);
        if (ready.empty()) {
            release_block();
            if (all_done()) break;
            continue;
        }
        size_t first = ready[random.below((uint32_t)ready.size())];
        do {
            std::vector<size_t> lanes(warp_size(first));
            for (size_t lane = 0; lane < lanes.size(); ++lane) lanes[lane] = lane;
            random.shuffle(lanes);
            for (size_t lane : lanes)
                if (threads[first + lane].state == READY) resume(&threads[first + lane]);
        } while (release_warp(&threads[first], warp_size(first)) && random.below(32));
    }
    const unsigned char* end = (unsigned char*)dynamic_shared() + shared_bytes;
    for (size_t byte = 0; byte < CANARY_BYTES; ++byte)
        if (end[byte] != 0xFF) fail("written %zu bytes past the %zu of dynamic shared memory", byte, shared_bytes);
}

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

static void run_grid(const unsigned* grid, const unsigned* block, size_t shared_bytes, unsigned seed) {
    grid_size = dim3(grid[0], grid[1], grid[2]);
    block_size = dim3(block[0], block[1], block[2]);
    threads = std::vector<Thread>(block[0] * block[1] * block[2]);
    warps = std::vector<Warp>((threads.size() + 31) / 32);
    dynamic_bytes = std::vector<unsigned char>(shared_bytes + 127 + CANARY_BYTES);
    for (unsigned number = 0; number < threads.size(); ++number) {
        threads[number].number = number;
        threads[number].index = {number % block[0], number / block[0] % block[1], number / block[0] / block[1]};
    }
    std::vector<unsigned> blocks(grid[0] * grid[1] * grid[2]);
    for (unsigned number = 0; number < blocks.size(); ++number) blocks[number] = number;
    Random random = {seed};
    random.shuffle(blocks);
    for (unsigned number : blocks) {
        block_index = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
        run_block(shared_bytes, random);
    }
}

// Runs with the process's signal handlers put aside; null, or what went wrong.
inline const char* guarded_run(const unsigned* grid, const unsigned* block, size_t shared_bytes, unsigned seed) {
    static char alternate[64 << 10];
    stack_t stack = {}, old_stack;
    stack.ss_sp = alternate;
    stack.ss_size = sizeof alternate;
    sigaltstack(&stack, &old_stack);
    struct sigaction action = {}, old[sizeof SIGNALS / sizeof *SIGNALS];
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; ++i) sigaction(SIGNALS[i], &action, &old[i]);
    size_t bytes = (size_t)block[0] * block[1] * block[2] * STACK_BYTES;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    stacks = (char*)memory;
    if (memory == MAP_FAILED) return "no memory for the threads' stacks";
    bool failed = sigsetjmp(abandoned, 1);
    if (!failed) run_grid(grid, block, shared_bytes, seed);
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; ++i) sigaction(SIGNALS[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    munmap(memory, bytes);
    return failed ? message : nullptr;
}

// The kernel's own parameter list says how each argument is read.
template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
template <class... A> void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>{});
}
template <class... A> int sizes_of(void (*)(A...), int* sizes) {
    int all[] = {0, (int)sizeof(A)...};
    for (size_t i = 0; i < sizeof...(A); ++i) sizes[i] = all[i + 1];
    return sizeof...(A);
}
}  // namespace simt

#define SIMT_EXPORT(kernel)                                                                                   \
    static void** simt_arguments_##kernel;                                                                    \
    extern "C" int simt_sizes_##kernel(int* sizes) { return simt::sizes_of(kernel, sizes); }                  \
    extern "C" const char* simt_run_##kernel(const unsigned* grid, const unsigned* block, size_t shared_bytes, \
                                             unsigned seed, void** arguments) {                               \
        simt_arguments_##kernel = arguments;                                                                  \
        simt::body = [] { simt::call(kernel, simt_arguments_##kernel); };                                     \
        return simt::guarded_run(grid, block, shared_bytes, seed);                                            \
    }
