// Host emulation of the CUDA subset that our kernels use, so that g++ compiles the same source as NVRTC and nvcc.
//
// The blocks of a launch run on OS threads ("workers"). The threads of a block are fibers of one worker: __syncthreads,
// __syncwarp and the warp collectives wait for each other. With fuzzing, every atomic and every relaxed load may switch to
// another fiber, before and after, so interleavings between the threads of a block occur as well.
//
// It rejects block sizes that are not a multiple of a warp, partial masks, collectives that lanes do not reach together, and
// barriers that can never be passed. It cannot show weak memory ordering, launch limits or speed.
//
// ThreadSanitizer knows the fibers. Only __syncthreads and __syncwarp count as synchronisation; switches and collectives do
// not. A missing one is therefore reported as a data race, as it would be on a device.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) alignas(bytes)
#define __shared__ static thread_local  // fibers of a block share the OS thread

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define SHIM_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define SHIM_UNSEEN
#endif

#if !defined(__x86_64__) && !defined(SHIM_UCONTEXT)
#define SHIM_UCONTEXT
#endif
#ifdef SHIM_UCONTEXT
#include <ucontext.h>
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr unsigned WARP = 32;
constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK = 64 * 1024;  // bytes; kernels keep no large arrays

// ---- Switching stacks -----------------------------------------------------------------------------------------------

#ifdef SHIM_UCONTEXT
using Context = ucontext_t;
SHIM_UNSEEN inline void jump(Context& from, Context& to) { swapcontext(&from, &to); }
SHIM_UNSEEN inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#else
// System V x86-64: callee-saved registers go to the old stack, come from the new one. swapcontext makes two system calls.
struct Context {
  void* top = nullptr;
};
extern "C" void shim_jump(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
.text
.hidden shim_jump
.globl shim_jump
.type shim_jump, @function
shim_jump:
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
.size shim_jump, .-shim_jump
)");
SHIM_UNSEEN inline void jump(Context& from, Context& to) { shim_jump(&from.top, to.top); }
SHIM_UNSEEN inline void prepare(Context& context, char* stack, void (*entry)()) {
  // From the top: a return address never used, the entry that `ret` pops, six registers. 16-byte aligned at the entry.
  auto top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + STACK) & ~uintptr_t(15));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.top = top;
}
#endif

// ---- A block and its fibers -----------------------------------------------------------------------------------------

struct Barrier {
  unsigned arrived = 0, generation = 0;
  char passed[2] = {};  // addresses that identify even and odd generations to ThreadSanitizer
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  Barrier* waits = nullptr;  // until this barrier leaves `generation`
  unsigned generation = 0;
  unsigned collectives = 0;  // collectives of the warp so far
  bool done = false;
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
#endif
};

enum Kind { SYNC, SHUFFLE, BALLOT, MATCH, SUM };

struct Warp {
  Barrier barrier;
  // Two sets in turn: a slow lane may still read one while fast lanes fill the other.
  uint64_t value[2][WARP];
  int kind[2][WARP];
};

struct Block {
  std::vector<Fiber> fibers;
  Warp warps[MAX_THREADS / WARP];
  Barrier barrier;
  Context scheduler;
  unsigned current = 0;
  uint64_t random = 1;
  bool fuzz = false;
  const char* failure = nullptr;
  void (*run)(void*) = nullptr;
  void* body = nullptr;
  char started = 0, ended = 0;  // addresses that identify begin and end of a block to ThreadSanitizer
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
#endif
  ~Block() {
    for (Fiber& fiber : fibers) {
      free(fiber.stack);
#if defined(__SANITIZE_THREAD__)
      if (fiber.tsan) __tsan_destroy_fiber(fiber.tsan);
#endif
    }
  }
};

inline thread_local Block* block = nullptr;

inline void released(void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#else
  (void)address;
#endif
}
inline void acquired(void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#else
  (void)address;
#endif
}

SHIM_UNSEEN inline void to_scheduler(Block* b, Fiber& me) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(b->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  jump(me.context, b->scheduler);
}

SHIM_UNSEEN inline void fail(const char* why) {
  Block* b = block;
  if (!b->failure) b->failure = why;
  to_scheduler(b, b->fibers[b->current]);  // never resumed
}

SHIM_UNSEEN inline uint64_t draw(Block* b) {
  b->random ^= b->random << 13;
  b->random ^= b->random >> 7;
  return b->random ^= b->random << 17;
}

SHIM_UNSEEN inline void perhaps_switch() {
  Block* b = block;
  if (b->fuzz && (draw(b) >> 40 & 3) == 0) to_scheduler(b, b->fibers[b->current]);
}

// `orders`: whether writes before are visible after. Collectives of CUDA wait, but do not order memory.
SHIM_UNSEEN inline void wait_at(Barrier& barrier, unsigned needed, bool orders) {
  Block* b = block;
  Fiber& me = b->fibers[b->current];
  // Two addresses, because fast fibers may reach the next generation before slow ones have left this one.
  char* passed = &barrier.passed[barrier.generation & 1];
  if (orders) released(passed);
  if (++barrier.arrived == needed) {
    barrier.arrived = 0;
    ++barrier.generation;
    if (b->fuzz) to_scheduler(b, me);
  } else {
    me.waits = &barrier;
    me.generation = barrier.generation;
    to_scheduler(b, me);
  }
  if (orders) acquired(passed);
}

// Every lane of the warp passes a value; returns the address of all 32.
SHIM_UNSEEN inline const uint64_t* exchange(unsigned mask, int kind, uint64_t value) {
  Block* b = block;
  if (mask != 0xffffffffu) fail("a warp collective with a partial mask");
  unsigned set = b->fibers[b->current].collectives++ & 1, lane = b->current % WARP;
  Warp& warp = b->warps[b->current / WARP];
  warp.value[set][lane] = value;
  warp.kind[set][lane] = kind;
  wait_at(warp.barrier, WARP, kind == SYNC);
  for (unsigned other = 0; other < WARP; ++other)
    if (warp.kind[set][other] != kind) fail("lanes of a warp are in different collectives");
  return warp.value[set];
}

SHIM_UNSEEN inline void enter() {
  Block* b = block;
  acquired(&b->started);
  b->run(b->body);
  released(&b->ended);
  b->fibers[b->current].done = true;
  to_scheduler(b, b->fibers[b->current]);
}

SHIM_UNSEEN inline void start_fibers(Block& b, unsigned threads) {
  while (b.fibers.size() < threads) {
    b.fibers.emplace_back();
    b.fibers.back().stack = static_cast<char*>(malloc(STACK));
#if defined(__SANITIZE_THREAD__)
    b.fibers.back().tsan = __tsan_create_fiber(0);
#endif
  }
  b.barrier = Barrier();
  for (unsigned warp = 0; warp < threads / WARP; ++warp) b.warps[warp].barrier = Barrier();
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = b.fibers[t];
    fiber.waits = nullptr;
    fiber.collectives = 0;
    fiber.done = false;
    prepare(fiber.context, fiber.stack, enter);
  }
}

// Runs the fibers in turn (with fuzzing: in random order) until all are done.
SHIM_UNSEEN inline void run_block(Block& b, unsigned threads) {
  start_fibers(b, threads);
  released(&b.started);
  unsigned left = threads, idle = 0, next = 0;
  while (left && !b.failure) {
    Fiber& fiber = b.fibers[next];
    bool ready = !fiber.done && !(fiber.waits && fiber.waits->generation == fiber.generation);
    if (ready) {
      idle = 0;
      fiber.waits = nullptr;
      b.current = next;
      threadIdx.x = next;
#if defined(__SANITIZE_THREAD__)
      __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
      jump(b.scheduler, fiber.context);
      left -= fiber.done;
      next = b.fuzz ? draw(&b) % threads : (next + 1) % threads;
    } else if (++idle > threads) {
      b.failure = "threads wait at a barrier that others never reach";
    } else {
      next = (next + 1) % threads;
    }
  }
  acquired(&b.ended);
}

// ---- Launching ------------------------------------------------------------------------------------------------------

struct Plan {
  unsigned grid, threads, fuzz, workers;
  uint64_t seed;
};

// Returns null, or the reason of a failure.
template <class Body>
const char* launch(const Plan& plan, Body body) {
  if (plan.threads == 0 || plan.threads % WARP || plan.threads > MAX_THREADS)
    return "threads of a block must be a multiple of 32, at most 1024";
  std::atomic<unsigned> next{0};
  std::atomic<const char*> failure{nullptr};
  auto work = [&] {
    Block b;
    block = &b;
    b.run = [](void* f) { (*static_cast<Body*>(f))(); };
    b.body = &body;
    b.fuzz = plan.fuzz;
#if defined(__SANITIZE_THREAD__)
    b.tsan = __tsan_get_current_fiber();
#endif
    gridDim = {plan.grid, 1, 1};
    blockDim = {plan.threads, 1, 1};
    for (unsigned index; (index = next++) < plan.grid && !failure;) {
      blockIdx = {index, 0, 0};
      threadIdx = {0, 0, 0};
      b.random = (plan.seed * 0x9e3779b97f4a7c15ull ^ (index + 1) * 0xd1342543de82ef95ull) | 1;
      run_block(b, plan.threads);
      if (b.failure) failure = b.failure;
    }
    block = nullptr;
  };
  if (plan.workers <= 1) {
    work();
  } else {
    std::vector<std::thread> pool;
    for (unsigned worker = 0; worker < plan.workers; ++worker) pool.emplace_back(work);
    for (std::thread& thread : pool) thread.join();
  }
  return failure;
}

template <class T>
uint64_t bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "");
  uint64_t raw = 0;
  memcpy(&raw, &value, sizeof value);
  return raw;
}
template <class T>
T unbits(uint64_t raw) {
  T value;
  memcpy(&value, &raw, sizeof value);
  return value;
}
}  // namespace shim

// ---- What kernels call ----------------------------------------------------------------------------------------------

inline void __syncthreads() { shim::wait_at(shim::block->barrier, blockDim.x, true); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::exchange(mask, shim::SYNC, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, unsigned lane) {
  return shim::unbits<T>(shim::exchange(mask, shim::SHUFFLE, shim::bits(value))[lane % shim::WARP]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  unsigned lane = threadIdx.x % shim::WARP;
  const uint64_t* all = shim::exchange(mask, shim::SHUFFLE, shim::bits(value));
  return lane >= by ? shim::unbits<T>(all[lane - by]) : value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned other) {
  unsigned lane = threadIdx.x % shim::WARP;
  return shim::unbits<T>(shim::exchange(mask, shim::SHUFFLE, shim::bits(value))[(lane ^ other) % shim::WARP]);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* all = shim::exchange(mask, shim::BALLOT, predicate != 0);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < shim::WARP; ++lane) votes |= unsigned(all[lane]) << lane;
  return votes;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  uint64_t mine = shim::bits(value);
  const uint64_t* all = shim::exchange(mask, shim::MATCH, mine);
  unsigned same = 0;
  for (unsigned lane = 0; lane < shim::WARP; ++lane) same |= unsigned(all[lane] == mine) << lane;
  return same;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const uint64_t* all = shim::exchange(mask, shim::SUM, value);
  unsigned sum = 0;
  for (unsigned lane = 0; lane < shim::WARP; ++lane) sum += unsigned(all[lane]);
  return sum;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }

template <class T>
T load_relaxed(const T* address) {
  shim::perhaps_switch();
  T value = __atomic_load_n(address, __ATOMIC_RELAXED);
  shim::perhaps_switch();
  return value;
}
template <class T>
T atomicAdd(T* address, T value) {
  shim::perhaps_switch();
  T before = __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  shim::perhaps_switch();
  return before;
}
template <class T>
T atomicMax(T* address, T value) {
  shim::perhaps_switch();
  T before = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (before < value &&
         !__atomic_compare_exchange_n(address, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  shim::perhaps_switch();
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  shim::perhaps_switch();
  return expected;
}
