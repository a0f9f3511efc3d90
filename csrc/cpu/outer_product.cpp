// Blocks of G and panels of X are packed so that a 32-bit lane holds two consecutive rows, which VDPBF16PS multiplies
// and adds at once. A tile of the sum, 4 columns of G by 64 of X, stays in 16 registers while the rows go by.
#include "outer_product.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(KD_AVX512_BF16)
#include <immintrin.h>
#endif

namespace kd {

#if defined(KD_AVX512_BF16)
namespace {

constexpr int64_t kPairs = 256;  // of rows in a block: a panel of X and a block of G stay in the second-level cache
constexpr int64_t kBlock = 128;  // columns of G in a block
constexpr int kTile = 4;         // columns of G in a tile
constexpr int kLanes = 16;       // columns of X in a register
constexpr int kRegisters = 4;    // of columns of X in a tile
constexpr int kPanel = kLanes * kRegisters;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Words = std::unique_ptr<uint32_t, Free>;

Words allocate(int64_t words) {
  return Words(static_cast<uint32_t*>(std::aligned_alloc(64, size_t((words + 15) / 16 * 16) * sizeof(uint32_t))));
}

__mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1u);
}

// Sixteen columns of two rows, the first row in the low halves; zeros beyond the mask and where there is no row.
__m512i interleave(const uint16_t* first, const uint16_t* second, __mmask16 mask) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first));
  if (second == nullptr) return low;
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// X -> [panel][pair][64]
void pack_x(const OuterProduct& p, int64_t begin, int64_t pairs, uint32_t* out) {
  for (int64_t column = 0; column < p.width; column += kPanel) {
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t row = begin + 2 * i;
      const uint16_t* first = p.x + row * p.x_stride + column;
      const uint16_t* second = row + 1 < p.rows ? first + p.x_stride : nullptr;
      for (int r = 0; r < kRegisters; ++r) {
        const int64_t at = r * kLanes;
        const __mmask16 mask = first_lanes(p.width - column - at);
        _mm512_store_si512(out, mask ? interleave(first + at, second ? second + at : nullptr, mask) : __m512i{});
        out += kLanes;
      }
    }
  }
}

// A block of columns of G -> [tile][pair][4]
void pack_g(const OuterProduct& p, int64_t begin, int64_t pairs, int64_t column, int64_t count, uint32_t* out) {
  const int64_t tile_words = pairs * kTile;
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t row = begin + 2 * i;
    const uint16_t* first = p.g + row * p.g_stride + column;
    const uint16_t* second = row + 1 < p.rows ? first + p.g_stride : nullptr;
    for (int64_t at = 0; at < count; at += kLanes) {
      const __m512i words = interleave(first + at, second ? second + at : nullptr, first_lanes(count - at));
      uint32_t* tile = out + at / kTile * tile_words + i * kTile;
      _mm_store_si128(reinterpret_cast<__m128i*>(tile), _mm512_extracti32x4_epi32(words, 0));
      _mm_store_si128(reinterpret_cast<__m128i*>(tile + tile_words), _mm512_extracti32x4_epi32(words, 1));
      _mm_store_si128(reinterpret_cast<__m128i*>(tile + 2 * tile_words), _mm512_extracti32x4_epi32(words, 2));
      _mm_store_si128(reinterpret_cast<__m128i*>(tile + 3 * tile_words), _mm512_extracti32x4_epi32(words, 3));
    }
  }
}

// One tile: `columns` <= 4 of G, `width` of X in Registers registers.
template <int Registers> void tile(const uint32_t* g, const uint32_t* x, int64_t pairs, float* sum, int64_t stride,
                                   int64_t columns, int64_t width, float gain, bool add) {
  __m512 acc[kTile][Registers];
  for (auto& row : acc)
    for (auto& a : row) a = _mm512_setzero_ps();
  for (int64_t i = 0; i < pairs; ++i, g += kTile, x += kPanel) {
    __m512bh b[Registers];
    for (int r = 0; r < Registers; ++r) b[r] = (__m512bh)_mm512_load_si512(x + r * kLanes);
    for (int c = 0; c < kTile; ++c) {
      const __m512bh a = (__m512bh)_mm512_set1_epi32(static_cast<int>(g[c]));
      for (int r = 0; r < Registers; ++r) acc[c][r] = _mm512_dpbf16_ps(acc[c][r], a, b[r]);
    }
  }
  const __m512 factor = _mm512_set1_ps(gain);
  for (int c = 0; c < kTile && c < columns; ++c, sum += stride) {
    for (int r = 0; r < Registers; ++r) {
      const __mmask16 mask = first_lanes(width - r * kLanes);
      float* out = sum + r * kLanes;
      const __m512 before = add ? _mm512_maskz_loadu_ps(mask, out) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(acc[c][r], factor, before));
    }
  }
}

using TileFunction = decltype(&tile<1>);
constexpr TileFunction kTiles[kRegisters] = {tile<1>, tile<2>, tile<3>, tile<4>};

void block(const OuterProduct& p, const uint32_t* g, const uint32_t* x, int64_t pairs, int64_t column, int64_t count,
           bool add) {
  for (int64_t h = 0; h < p.width; h += kPanel, x += pairs * kPanel) {
    const int64_t width = std::min<int64_t>(p.width - h, kPanel);
    const TileFunction run = kTiles[(width - 1) / kLanes];
    for (int64_t at = 0; at < count; at += kTile)
      run(g + at * pairs, x, pairs, p.sum + (column + at) * p.sum_stride + h, p.sum_stride, count - at, width, p.gain,
          add);
  }
}

}  // namespace

bool has_outer_product() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
}

void outer_product(const OuterProduct& p, int threads) {
  const int64_t panels = (p.width + kPanel - 1) / kPanel, blocks = (p.columns + kBlock - 1) / kBlock;
  if (p.rows == 0 && !p.add)
    for (int64_t i = 0; i < p.columns; ++i) std::fill_n(p.sum + i * p.sum_stride, p.width, 0.0f);
  const Words x = allocate(panels * kPanel * kPairs);
  if (!x) throw std::bad_alloc();
  std::atomic<bool> no_memory{false};
  for (int64_t begin = 0; begin < p.rows; begin += 2 * kPairs) {
    const int64_t pairs = std::min((p.rows - begin + 1) / 2, kPairs);
    pack_x(p, begin, pairs, x.get());
#pragma omp parallel num_threads(int(std::max<int64_t>(1, std::min<int64_t>(threads, blocks))))
    {
      const Words g = allocate(kBlock * kPairs);
      if (!g) no_memory = true;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < blocks; ++i) {
        if (!g) continue;
        const int64_t column = i * kBlock, count = std::min(p.columns - column, kBlock);
        pack_g(p, begin, pairs, column, count, g.get());
        block(p, g.get(), x.get(), pairs, column, count, p.add || begin > 0);
      }
    }
    if (no_memory) throw std::bad_alloc();
  }
}

#else

bool has_outer_product() { return false; }
void outer_product(const OuterProduct&, int) {}

#endif

}  // namespace kd
