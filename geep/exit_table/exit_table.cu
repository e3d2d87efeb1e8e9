// The exit table's kernels. One source, three compilers: NVRTC (CuPy), nvcc (checks), g++ with shim.h (tests).
//
// Counting: keys[capacity] (EMPTY or a key, see keys.py) and counts[capacity][width], with open addressing and linear
// probing; keys are never moved or removed. Frozen: slots of one 32-byte sector {u64 key; u16 row[12]} (two: row[28], four:
// row[60]), so a hit reads its sectors in 16-byte loads. Single tokens with small ids need no search: `dense` is addressed by
// id, counts[id][width] while counting, the same slots when frozen, with EMPTY as the key of an id without a row.
//
// Columns (columns.py): a sample marks some of `width`, bit c for column c. Bits of `starts` say where cumulative counts start
// anew; every sample marks exactly one of the columns once_from .. once_to - 1.
//
// Only integers are added, so the order of threads affects only which key gets which slot.

typedef unsigned long long u64;
typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef short i16;

#ifndef WIDTH
#define WIDTH 12  // entries of a frozen row: 12, 28 or 60
#endif
#define WORDS (WIDTH <= 12 ? 4 : WIDTH <= 28 ? 8 : 16)  // u64 per slot
#define PER_LANE ((WIDTH + 31) / 32)  // columns that a lane adds up
#define EMPTY 0xffffffffffffffffull
#define NOWHERE 0xffffffffffffffffull
#define ALL_LANES 0xffffffffu
#define ID_BITS 20
#define N_SHIFT 60
#define SCALE 16384u  // Q14
#define UNIT 65536u   // of cut points and prices
#define SEGMENT 32768  // positions: 3 n-grams of 2^14 each at every one of them stay below 2^32

// status of a build: fresh keys, late n-grams, longest search. trouble of a query: largest bad id + 1, bad sample + 1.
#define FRESH 0
#define LATE 1
#define LONGEST 2
// rules (rules.py)
#define QUANTILE 0
#define CUTS 1
#define EXPECTED 2
#define BAD_ID 0
#define BAD_SAMPLE 1

#ifdef __CUDACC__
__device__ __forceinline__ u64 load_relaxed(const u64* address) { return *(const volatile u64*)address; }
#endif

struct __align__(16) Pair {
  u64 a, b;
};

// Ids that are part of no key: four in registers, which is enough for BERT, the rest in memory.
struct Special {
  int s0, s1, s2, s3;
  const int* more;
  int more_count;
};

__device__ __forceinline__ bool is_word(int id, const Special& special) {
  if (id == special.s0 || id == special.s1 || id == special.s2 || id == special.s3) return false;
  for (int i = 0; i < special.more_count; ++i)
    if (id == special.more[i]) return false;
  return true;
}

__device__ __forceinline__ bool in_range(int id) { return (u32)id < 1u << ID_BITS; }

// Calls use(n, id, key) for every n-gram that starts at `at` and ends before `end`; n-grams stop at a special id.
template <class Use>
__device__ __forceinline__ void each_gram(const int* ids, i64 at, i64 end, int ngram, const Special& special, Use use) {
  u64 key = 0;
  for (int n = 1; n <= ngram && at + n <= end; ++n) {
    int id = ids[at + n - 1];
    if (!in_range(id) || !is_word(id, special)) return;
    key |= (u64)id << (3 - n) * ID_BITS;
    use(n, id, key | (u64)n << N_SHIFT);
  }
}

// Finaliser of splitmix64 (Steele et al. 2014), keyed by the table's seed.
__device__ __forceinline__ u64 home(u64 key, u64 seed, u64 mask) {
  key ^= seed;
  key = (key ^ key >> 30) * 0xbf58476d1ce4e5b9ull;
  key = (key ^ key >> 27) * 0x94d049bb133111ebull;
  return (key ^ key >> 31) & mask;
}

__device__ __forceinline__ u64 warp_index() { return (blockIdx.x * (u64)blockDim.x + threadIdx.x) / 32; }
__device__ __forceinline__ u64 warp_count() { return gridDim.x * (u64)blockDim.x / 32; }
__device__ __forceinline__ u64 thread_index() { return blockIdx.x * (u64)blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 thread_count() { return gridDim.x * (u64)blockDim.x; }

__device__ __forceinline__ u32 warp_sum(u32 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int other = 16; other; other >>= 1) value += __shfl_xor_sync(ALL_LANES, value, other);
  return value;
#else
  return __reduce_add_sync(ALL_LANES, value);
#endif
}

__device__ __forceinline__ u64 warp_total(u64 value) {
  for (int other = 16; other; other >>= 1) value += __shfl_xor_sync(ALL_LANES, value, other);
  return value;
}

__device__ __forceinline__ u64 warp_least(u64 value) {
  for (int other = 16; other; other >>= 1) {
    u64 theirs = __shfl_xor_sync(ALL_LANES, value, other);
    value = theirs < value ? theirs : value;
  }
  return value;
}

// Adds `by` to every marked column of a key.
__device__ __forceinline__ void add_marks(u32* counts, u64 marks, u32 by) {
  for (; marks; marks &= marks - 1) atomicAdd(counts + __ffsll((i64)marks) - 1, by);
}

// Returns the slot of a key, claimed if it is new; NOWHERE after `probes` slots of other keys. `stride`: u64 per slot.
__device__ __forceinline__ u64 find_or_take(
    u64* keys, int stride, u64 mask, u64 seed, int probes, u64 key, u32& fresh, u32& searched) {
  u64 slot = home(key, seed, mask);
  for (int probe = 0; probe < probes; ++probe, slot = (slot + 1) & mask) {
    u64 there = load_relaxed(keys + slot * stride);
    if (there == EMPTY) {
      there = atomicCAS(keys + slot * stride, EMPTY, key);
      if (there == EMPTY) {
        ++fresh;
        there = key;
      }
    }
    if (there == key) {
      searched = probe + 1 > (int)searched ? probe + 1 : searched;
      return slot;
    }
  }
  return NOWHERE;
}

__device__ __forceinline__ void count_or_put_off(u64* keys, u32* counts, int width, u64 mask, u64 seed, int probes, u64 key,
    u64 marks, u64* late_keys, u64* late_marks, u64* status, u32& fresh) {
  u32 searched = 0;
  u64 slot = find_or_take(keys, 1, mask, seed, probes, key, fresh, searched);
  if (slot != NOWHERE) {
    add_marks(counts + slot * width, marks, 1u);
  } else {
    u64 at = atomicAdd(status + LATE, 1ull);
    late_keys[at] = key;
    late_marks[at] = marks;
  }
}

__device__ __forceinline__ void report(u64* status, u32 fresh) {
  fresh = warp_sum(fresh);
  if (threadIdx.x % 32 == 0 && fresh) atomicAdd(status + FRESH, (u64)fresh);
}

// Counts the n-grams that start at positions low .. high - 1, in samples first .. last - 1. A warp per sample.
// N-grams without a slot go to the late list, which must have room for all.
extern "C" __global__ void insert(const int* ids, const i64* offsets, const u64* marks, i64 first, i64 last, i64 low,
    i64 high, int ngram, int width, int s0, int s1, int s2, int s3, const int* more, int more_count, u32* dense,
    int dense_ids, u64* keys, u32* counts, u64 mask, u64 seed, int probes, u64* late_keys, u64* late_marks, u64* status) {
  Special special = {s0, s1, s2, s3, more, more_count};
  int lane = threadIdx.x % 32;
  u32 fresh = 0;
  for (i64 sample = first + (i64)warp_index(); sample < last; sample += (i64)warp_count()) {
    i64 begin = offsets[sample], end = offsets[sample + 1];
    u64 marked = marks[sample];
    i64 stop = end < high ? end : high;
    for (i64 at = (begin > low ? begin : low) + lane; at < stop; at += 32)
      each_gram(ids, at, end, ngram, special, [&](int n, int id, u64 key) {
        if (n == 1 && id < dense_ids)
          add_marks(dense + (u64)id * width, marked, 1u);
        else
          count_or_put_off(keys, counts, width, mask, seed, probes, key, marked, late_keys, late_marks, status, fresh);
      });
  }
  report(status, fresh);
}

// Undoes `insert` of those positions, with unchanged marks. Late n-grams not counted since have no slot: a key that found
// none in a launch finds none later in it either.
extern "C" __global__ void take_back(const int* ids, const i64* offsets, const u64* marks, i64 first, i64 last, i64 low,
    i64 high, int ngram, int width, int s0, int s1, int s2, int s3, const int* more, int more_count, u32* dense,
    int dense_ids, const u64* keys, u32* counts, u64 mask, u64 seed, int probes) {
  Special special = {s0, s1, s2, s3, more, more_count};
  int lane = threadIdx.x % 32;
  for (i64 sample = first + (i64)warp_index(); sample < last; sample += (i64)warp_count()) {
    i64 begin = offsets[sample], end = offsets[sample + 1];
    u64 marked = marks[sample];
    i64 from = begin < low ? low : begin, stop = end < high ? end : high;
    for (i64 at = from + lane; at < stop; at += 32)
      each_gram(ids, at, end, ngram, special, [&](int n, int id, u64 key) {
        if (n == 1 && id < dense_ids) {
          add_marks(dense + (u64)id * width, marked, ~0u);
          return;
        }
        u64 slot = home(key, seed, mask);
        for (int probe = 0; probe < probes && keys[slot] != EMPTY; ++probe, slot = (slot + 1) & mask)
          if (keys[slot] == key) {
            add_marks(counts + slot * width, marked, ~0u);
            return;
          }
      });
  }
}

// Counts `size` late n-grams; those without a slot go to another late list.
extern "C" __global__ void insert_late(const u64* now_keys, const u64* now_marks, i64 size, int width, u64* keys,
    u32* counts, u64 mask, u64 seed, int probes, u64* late_keys, u64* late_marks, u64* status) {
  u32 fresh = 0;
  for (u64 i = thread_index(); i < (u64)size; i += thread_count())
    count_or_put_off(
        keys, counts, width, mask, seed, probes, now_keys[i], now_marks[i], late_keys, late_marks, status, fresh);
  report(status, fresh);
}

// Adds rows of counts of distinct keys (EMPTY ones are skipped); `LATE` counts rows without a slot.
extern "C" __global__ void absorb(const u64* from_keys, const u32* from_counts, i64 size, int width, u64* keys,
    u32* counts, u64 mask, u64 seed, int probes, u64* status) {
  u32 fresh = 0, searched = 0;
  for (u64 i = thread_index(); i < (u64)size; i += thread_count()) {
    if (from_keys[i] == EMPTY) continue;
    u64 slot = find_or_take(keys, 1, mask, seed, probes, from_keys[i], fresh, searched);
    if (slot == NOWHERE) {
      atomicAdd(status + LATE, 1ull);
      continue;
    }
    for (int column = 0; column < width; ++column) counts[slot * width + column] += from_counts[i * width + column];
  }
  report(status, fresh);
}

// Computes how often each of `size` keys was counted.
extern "C" __global__ void totals(const u32* counts, i64 size, int width, int once_from, int once_to, i64* sums) {
  for (u64 i = thread_index(); i < (u64)size; i += thread_count()) {
    u64 total = 0;
    for (int column = once_from; column < once_to; ++column) total += counts[i * width + column];
    sums[i] = (i64)total;
  }
}

// Writes the row as rows.py does: cumulative levels rounded down, then differenced. `prior` is cumulative, too.
__device__ __forceinline__ void write_row(
    u64* slot, const u32* counts, u64 total, int width, u64 starts, const i64* prior, u64 smoothing) {
  u64 seen = 0, below = 0;
  for (int word = 1; word < WORDS; ++word) {
    u64 packed = 0;
    for (int part = 0; part < 4; ++part) {
      int column = (word - 1) * 4 + part;
      if (column >= width) break;
      if (starts >> column & 1) seen = below = 0;
      seen += counts[column];
      u64 level = (seen * SCALE + smoothing * (u64)prior[column]) / (total + smoothing);
      packed |= (level - below) << 16 * part;
      below = level;
    }
    slot[word] = packed;
  }
}

// Places the keys at order[begin] .. order[end - 1] in a new frozen table that has room, and writes their rows.
extern "C" __global__ void freeze(const i64* order, i64 begin, i64 end, const u64* keys, const u32* counts,
    const i64* sums, int width, u64 starts, const i64* prior, u64 smoothing, u64* slots, u64 mask, u64 seed, int probes,
    u64* status) {
  u32 fresh = 0, searched = 0;
  for (u64 i = begin + thread_index(); i < (u64)end; i += thread_count()) {
    u64 from = (u64)order[i];
    u64 slot = find_or_take(slots, WORDS, mask, seed, probes, keys[from], fresh, searched);
    if (slot == NOWHERE)
      atomicAdd(status + LATE, 1ull);
    else
      write_row(slots + slot * WORDS, counts + from * width, (u64)sums[from], width, starts, prior, smoothing);
  }
  if (searched) atomicMax(status + LONGEST, (u64)searched);
  report(status, fresh);
}

// Writes the frozen slots of ids 0 .. size - 1; ids counted less than `min_count` keep EMPTY.
extern "C" __global__ void freeze_dense(const u32* counts, const i64* sums, i64 size, int width, u64 starts,
    i64 min_count, const i64* prior, u64 smoothing, u64* slots) {
  for (u64 id = thread_index(); id < (u64)size; id += thread_count())
    if (sums[id] >= min_count) {
      slots[id * WORDS] = id << 2 * ID_BITS | 1ull << N_SHIFT;
      write_row(slots + id * WORDS, counts + id * width, (u64)sums[id], width, starts, prior, smoothing);
    }
}

__device__ __forceinline__ void add_word(u32* sums, u64 word, int column) {
#pragma unroll
  for (int part = 0; part < 4; ++part)
    if (column + part < WIDTH) sums[column + part] += (u32)(word >> 16 * part) & 0xffffu;
}

// Adds a row whose first 16 bytes are loaded already.
__device__ __forceinline__ void add_row(u32* sums, const Pair* slot, Pair first) {
  add_word(sums, first.b, 0);
#pragma unroll
  for (int pair = 1; pair < WORDS / 2; ++pair) {
    Pair next = slot[pair];
    add_word(sums, next.a, pair * 8 - 4);
    add_word(sums, next.b, pair * 8);
  }
}

// A warp per sample: lanes look up n-grams, then lane k holds the sums for columns k and k + 32. Writes, unless null, the sums
// [samples, width] and the exits under `queries` settings of a rule [samples, queries]: settings[queries][layers - 1] of CUTS,
// else one per query. Rules read the first `layers` columns; a sample without keys takes the deepest layer. tally: keys found,
// all keys. Ids and offsets out of range are skipped and reported in `trouble`.
extern "C" __global__ void predict(const int* ids, const i64* offsets, i64 samples, i64 size, int ngram, int width, int layers,
    u64 starts, int s0, int s1, int s2, int s3, const int* more, int more_count, const u64* __restrict__ dense, int dense_ids,
    const u64* __restrict__ slots, u64 mask, u64 seed, int probes, const i64* prior, i64* out_sums, int rule,
    const i64* settings, int queries, i16* out_exits, u64* tally, u64* trouble) {
  Special special = {s0, s1, s2, s3, more, more_count};
  int lane = threadIdx.x % 32;
  u64 usual[PER_LANE];
#pragma unroll
  for (int part = 0; part < PER_LANE; ++part) {
    int column = lane + 32 * part;
    usual[part] = 0;
    if (column < width) usual[part] = (u64)prior[column] - (starts >> column & 1 ? 0 : (u64)prior[column - 1]);
  }
  u64 bad_id = 0;
  u64 all_found = 0, all_asked = 0;
  for (i64 sample = (i64)warp_index(); sample < samples; sample += (i64)warp_count()) {
    i64 begin = offsets[sample], end = offsets[sample + 1];
    if (begin < 0 || end < begin || end > size) {
      if (lane == 0) atomicMax(trouble + BAD_SAMPLE, (u64)sample + 1);
      begin = end = 0;
    }
    u64 total = 0, mine[PER_LANE];  // of all keys, and the sums of this lane's columns
#pragma unroll
    for (int part = 0; part < PER_LANE; ++part) mine[part] = 0;
    for (i64 from = begin; from < end; from += SEGMENT) {
      i64 stop = end - from < SEGMENT ? end : from + SEGMENT;
      u32 sums[WIDTH];
#pragma unroll
      for (int column = 0; column < WIDTH; ++column) sums[column] = 0;
      u32 found = 0, missed = 0;
      for (i64 at = from + lane; at < stop; at += 32) {
        if (!in_range(ids[at])) bad_id = (u32)ids[at] + 1ull > bad_id ? (u32)ids[at] + 1ull : bad_id;
        each_gram(ids, at, end, ngram, special, [&](int n, int id, u64 key) {
          const u64* place = dense + (u64)id * WORDS;
          Pair first = {EMPTY, 0};
          if (n > 1 || id >= dense_ids) {
            u64 slot = home(key, seed, mask);
            for (int probe = 0; probe < probes; ++probe, slot = (slot + 1) & mask) {
              place = slots + slot * WORDS;
              first = *(const Pair*)place;
              if (first.a == key || first.a == EMPTY) break;
            }
          } else {
            first = *(const Pair*)place;
          }
          if (first.a == key) {
            add_row(sums, (const Pair*)place, first);
            ++found;
          } else {
            ++missed;
          }
        });
      }
      found = warp_sum(found);
      missed = warp_sum(missed);
#pragma unroll
      for (int part = 0; part < PER_LANE; ++part) mine[part] += missed * usual[part];
#pragma unroll
      for (int column = 0; column < WIDTH; ++column) {
        u32 sum = warp_sum(sums[column]);
        if (lane == column % 32) mine[column / 32] += sum;
      }
      total += found + missed;
      all_found += found;
    }
    all_asked += total;
#pragma unroll
    for (int part = 0; part < PER_LANE; ++part) {
      int column = lane + 32 * part;
      if (out_sums && column < width) out_sums[sample * width + column] = (i64)mine[part];
    }
    if (out_exits) {
      u64 mass = total * SCALE, own = lane < layers ? mine[0] : 0;
      u64 reading = own;  // of quantiles: the cumulative sum; of cuts: the sum weighted by exits
      for (int by = 1; rule == QUANTILE && by < 32; by <<= 1) {
        u64 before = __shfl_up_sync(ALL_LANES, reading, by);
        if (lane >= by) reading += before;
      }
      if (rule == CUTS) reading = warp_total(lane * own) * UNIT;
      for (int q = 0; q < queries; ++q) {
        bool here;  // the first lane that says so has the exit
        if (rule == QUANTILE) {
          here = reading * 1000 >= mass * (u64)settings[q];
        } else if (rule == CUTS) {
          here = lane >= layers - 1 || reading < mass * (u64)settings[q * (layers - 1) + lane];
        } else {
          u64 cost = lane < layers ? (mass - own) * UNIT + mass * (u64)settings[q] * (lane + 1) : ~0ull;
          here = cost == warp_least(cost);
        }
        u32 reached = __ballot_sync(ALL_LANES, here);
        if (lane == 0) out_exits[sample * queries + q] = (i16)(total ? __ffs((int)reached) - 1 : layers - 1);
      }
    }
  }
  if (bad_id) atomicMax(trouble + BAD_ID, bad_id);
  if (lane == 0 && all_asked) {
    atomicAdd(tally, all_found);
    atomicAdd(tally + 1, all_asked);
  }
}
