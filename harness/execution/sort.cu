// Stable counting sort of samples by (exit, length) within windows of arrival. One source for NVRTC, nvcc and g++ (shim.h).
//
// A window is cut into tiles of TILE samples. count_bins writes the number of samples per bin of each tile to
// counts[window][bin][tile]. Running sums over that array (computed by the caller) are the places where each tile's samples
// of each bin end. place walks through a tile in order, 32 samples at a time, and assigns places. There are no atomics on
// global memory, so the result is deterministic. If the bins are few, one pass sorts by exit and length; else two passes
// sort by length and then by exit. Values out of bounds count as the nearest bound.

typedef long long i64;
typedef unsigned int u32;
typedef short i16;

#define MAX_BINS 4096
#define TILE 2048
#define ALL_LANES 0xffffffffu
#define BOTH 0
#define LENGTH 1

__device__ __forceinline__ i64 clamped(i64 value, i64 last) { return value < 0 ? 0 : value > last ? last : value; }

// The bin of a sample; `by` is BOTH, LENGTH or anything else for the exit.
__device__ __forceinline__ int bin_of(
    const i16* exits, const i64* lengths, i64 sample, int depth, int longest, int by, int descending) {
  int length = by <= LENGTH ? (int)clamped(lengths[sample], longest) : 0;
  int exit = by != LENGTH ? (int)clamped(exits[sample], depth - 1) : 0;
  if (descending) {
    length = longest - length;
    exit = depth - 1 - exit;
  }
  return by == BOTH ? exit * (longest + 1) + length : by == LENGTH ? length : exit;
}

// Block t counts tile t % tiles of window t / tiles. `order` (may be null): the sample at each position.
extern "C" __global__ void count_bins(const i16* exits, const i64* lengths, const i64* order, i64 size, i64 window, int tiles,
    int bins, int depth, int longest, int by, int descending, u32* counts) {
  __shared__ u32 count[MAX_BINS];
  i64 which = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  i64 begin = which * window + tile * TILE, end = (which + 1) * window;
  if (end > size) end = size;
  if (end > begin + TILE) end = begin + TILE;
  for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) count[bin] = 0;
  __syncthreads();
  for (i64 at = begin + threadIdx.x; at < end; at += blockDim.x)
    atomicAdd(&count[bin_of(exits, lengths, order ? order[at] : at, depth, longest, by, descending)], 1u);
  __syncthreads();
  for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) counts[(which * bins + bin) * tiles + tile] = count[bin];
}

// Same tiles, blocks of one warp. `ends`: running sums of `counts`.
extern "C" __global__ void place(const i16* exits, const i64* lengths, const i64* order, i64 size, i64 window, int tiles,
    int bins, int depth, int longest, int by, int descending, const u32* counts, const i64* ends, i64* placed) {
  __shared__ i64 next[MAX_BINS];
  i64 which = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  i64 begin = which * window + tile * TILE, end = (which + 1) * window;
  if (end > size) end = size;
  if (end > begin + TILE) end = begin + TILE;
  int lane = threadIdx.x;
  for (int bin = lane; bin < bins; bin += 32) {
    i64 cell = (which * bins + bin) * tiles + tile;
    next[bin] = ends[cell] - counts[cell];
  }
  __syncwarp();
  for (i64 from = begin; from < end; from += 32) {
    i64 at = from + lane, sample = at < end && order ? order[at] : at;
    int bin = at < end ? bin_of(exits, lengths, sample, depth, longest, by, descending) : -1 - lane;
    u32 same = __match_any_sync(ALL_LANES, bin);
    int before = __popc(same & ((1u << lane) - 1));
    i64 mine = at < end ? next[bin] + before : 0;
    __syncwarp();
    if (at < end) {
      placed[mine] = sample;
      if (before == 0) next[bin] += __popc(same);
    }
    __syncwarp();
  }
}
