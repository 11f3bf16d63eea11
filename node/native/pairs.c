/* bfloat16 dot products (AVX512-BF16): vdpbf16ps multiplies 16 pairs of bfloat16 and adds each to its own float32 sum.
 *
 * An output's sum is one chain over the pairs of the depth, whatever the number of rows and however the depth is cut into
 * blocks: a sum that waits in memory between two blocks is the float32 that it was in its register.
 */
#include "kernels.h"

/* Sums in registers: 12 rows by 2 vectors of the 32. */
enum { MOST_TILE = 12 };
/* Pairs of the depth that many rows take at a time, at most: a panel's 40 KiB then stay in the first-level cache. */
enum { DEPTH_PAIRS = 320 };

PAIRS INLINE void tile(const int rows, float *y, ptrdiff_t stride, const uint16_t *x, ptrdiff_t x_stride,
                       const uint16_t *panel, ptrdiff_t pairs, int columns, int add) {
    const uint32_t wanted = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
    const __mmask16 low = (__mmask16)wanted, high = (__mmask16)(wanted >> 16);
    __m512 sums[MOST_TILE][2];
    _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {
        sums[r][0] = add ? _mm512_maskz_loadu_ps(low, y + r * stride) : _mm512_setzero_ps();
        sums[r][1] = add ? _mm512_maskz_loadu_ps(high, y + r * stride + 16) : _mm512_setzero_ps();
    }
    for (ptrdiff_t k = 0; k < pairs; k++, panel += 64) {
        if (rows <= 4) {
            _mm_prefetch((const char *)panel + 4096, _MM_HINT_T0);
            _mm_prefetch((const char *)panel + 4160, _MM_HINT_T0);
        }
        const __m512bh first = (__m512bh)_mm512_loadu_si512(panel), second = (__m512bh)_mm512_loadu_si512(panel + 32);
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {
            int32_t both;
            memcpy(&both, x + r * x_stride + 2 * k, 4);
            const __m512bh pair = (__m512bh)_mm512_set1_epi32(both);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], pair, first);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], pair, second);
        }
    }
    _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {
        _mm512_mask_storeu_ps(y + r * stride, low, sums[r][0]);
        _mm512_mask_storeu_ps(y + r * stride + 16, high, sums[r][1]);
    }
}

PAIRS void panel_by_pairs(float *y, ptrdiff_t stride, const uint16_t *x, ptrdiff_t x_stride, const uint16_t *panel,
                          ptrdiff_t rows, ptrdiff_t pairs, int columns, int add) {
    ptrdiff_t tiles = (rows + MOST_TILE - 1) / MOST_TILE;
    for (ptrdiff_t m = 0; tiles; tiles--) {
        const ptrdiff_t now = (rows - m + tiles - 1) / tiles; /* as even as can be */
        switch (now) {
#define CASE(n) case n: tile(n, y + m * stride, stride, x + m * x_stride, x_stride, panel, pairs, columns, add); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
        }
        m += now;
    }
}

void multiply_panels(panel_fn *panel, float *y, ptrdiff_t stride, const uint16_t *x, const lp_matrix *w, ptrdiff_t rows,
                     ptrdiff_t n0, ptrdiff_t n1) {
    const ptrdiff_t depth = round_up(w->depth, 32), pairs = depth / 2;
    const ptrdiff_t pieces = rows > MOST_TILE ? (pairs + DEPTH_PAIRS - 1) / DEPTH_PAIRS : 1; /* as even as can be */
    const ptrdiff_t step = round_up((pairs + pieces - 1) / pieces, 16);
    for (ptrdiff_t n = n0; n < n1; n += CHUNK) {
        const uint16_t *own = (const uint16_t *)w->data + n / CHUNK * depth * CHUNK;
        for (ptrdiff_t k = 0; k < pairs; k += step)
            panel(y + n - n0, stride, x + 2 * k, depth, own + k * 64, rows, least(step, pairs - k),
                  (int)least(CHUNK, n1 - n), k > 0);
    }
}

/* ---- The same panels in float32, where the processor's bfloat16 dot products are slower than that (some Intel cores need
 * twice the time): a panel is widened in registers, operands are rounded to bfloat16 and kept as float32. One chain of sums
 * here too. ---- */

/* Pairs that many rows take at a time, at most: 20 KiB of a panel, beside operands of twice the bytes. */
enum { WIDE_PAIRS = 160 };

PAIRS INLINE void wide_tile(const int rows, float *y, ptrdiff_t stride, const float *x, ptrdiff_t x_stride,
                            const uint16_t *panel, ptrdiff_t pairs, int columns, int add) {
    const uint32_t wanted = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
    const __mmask16 low = (__mmask16)wanted, high = (__mmask16)(wanted >> 16);
    const __m512i odd = _mm512_set1_epi32((int32_t)0xffff0000u);
    __m512 sums[MOST_TILE][2];
    _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {
        sums[r][0] = add ? _mm512_maskz_loadu_ps(low, y + r * stride) : _mm512_setzero_ps();
        sums[r][1] = add ? _mm512_maskz_loadu_ps(high, y + r * stride + 16) : _mm512_setzero_ps();
    }
    for (ptrdiff_t k = 0; k < pairs; k++, panel += 64) {
        if (rows <= 4) {
            _mm_prefetch((const char *)panel + 4096, _MM_HINT_T0);
            _mm_prefetch((const char *)panel + 4160, _MM_HINT_T0);
        }
        const __m512i first = _mm512_loadu_si512(panel), second = _mm512_loadu_si512(panel + 32);
        const __m512 w[2][2] = {
            {_mm512_castsi512_ps(_mm512_slli_epi32(first, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(second, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(first, odd)), _mm512_castsi512_ps(_mm512_and_si512(second, odd))}};
        _Pragma("GCC unroll 2") for (int half = 0; half < 2; half++)
            _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {
                const __m512 one = _mm512_set1_ps(x[r * x_stride + 2 * k + half]);
                sums[r][0] = _mm512_fmadd_ps(one, w[half][0], sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(one, w[half][1], sums[r][1]);
            }
    }
    _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {
        _mm512_mask_storeu_ps(y + r * stride, low, sums[r][0]);
        _mm512_mask_storeu_ps(y + r * stride + 16, high, sums[r][1]);
    }
}

PAIRS static void wide_multiply(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *w, ptrdiff_t rows,
                                ptrdiff_t n0, ptrdiff_t n1) {
    const ptrdiff_t depth = round_up(w->depth, 32), pairs = depth / 2;
    const ptrdiff_t pieces = rows > MOST_TILE ? (pairs + WIDE_PAIRS - 1) / WIDE_PAIRS : 1;
    const ptrdiff_t step = (pairs + pieces - 1) / pieces;
    for (ptrdiff_t n = n0; n < n1; n += CHUNK) {
        const uint16_t *own = (const uint16_t *)w->data + n / CHUNK * depth * CHUNK;
        for (ptrdiff_t k = 0; k < pairs; k += step) {
            ptrdiff_t tiles = (rows + MOST_TILE - 1) / MOST_TILE;
            for (ptrdiff_t m = 0; tiles; tiles--) {
                const ptrdiff_t now = (rows - m + tiles - 1) / tiles;
                float *out = y + m * stride + n - n0;
                const float *x = (const float *)operands + m * depth + 2 * k;
                switch (now) {
#define CASE(r) \
    case r: wide_tile(r, out, stride, x, depth, own + k * 64, least(step, pairs - k), (int)least(CHUNK, n1 - n), k > 0); break;
                    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
                }
                m += now;
            }
        }
    }
}

static size_t wide_operand_bytes(ptrdiff_t depth) { return (size_t)round_up(depth, 32) * sizeof(float); }

PAIRS static void wide_prepare(void *operand, const float *x, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t depth) {
    float *out = (float *)operand + k0;
    const ptrdiff_t count = k1 - k0, whole = k1 == depth ? round_up(depth, 32) - k0 : count;
    for (ptrdiff_t k = 0; k < whole; k += 16) {
        const __mmask16 wanted = count - k >= 16 ? 0xffff : count <= k ? 0 : (__mmask16)((1u << (count - k)) - 1);
        const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(wanted, x + k));
        _mm512_storeu_ps(out + k, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)));
    }
}

/* Whether dot products take longer than the two float32 multiplications that each stands for. The two kinds of processors
 * should be a factor of four apart (a half and twice the time), and the least of several short loops is taken: the answer
 * does not change from start to start. */
PAIRS int pairs_are_slow(void) {
    enum { CHAINS = 10, ROUNDS = 1000, REPEATS = 9, PERCENT = 125 };
    uint64_t least_of[2] = {UINT64_MAX, UINT64_MAX};
    __m512i numbers = _mm512_setzero_si512();
    for (int repeat = 0; repeat < 2 * REPEATS; repeat++) {
        __m512 sums[CHAINS];
        for (int c = 0; c < CHAINS; c++) sums[c] = _mm512_setzero_ps();
        __asm__ volatile("" : "+v"(numbers)); /* unknown to the compiler */
        const __m512 wide = _mm512_castsi512_ps(numbers);
        const uint64_t begin = __rdtsc();
        for (int round = 0; round < ROUNDS; round++)
            _Pragma("GCC unroll 10") for (int c = 0; c < CHAINS; c++) {
                if (repeat % 2 == 0) sums[c] = _mm512_dpbf16_ps(sums[c], (__m512bh)numbers, (__m512bh)numbers);
                else sums[c] = _mm512_fmadd_ps(wide, wide, _mm512_fmadd_ps(wide, wide, sums[c]));
                __asm__ volatile("" : "+v"(sums[c]));
            }
        const uint64_t took = __rdtsc() - begin;
        if (took < least_of[repeat % 2]) least_of[repeat % 2] = took;
    }
    return least_of[0] * 100 > least_of[1] * PERCENT;
}

static size_t operand_bytes(ptrdiff_t depth) { return (size_t)round_up(depth, 32) * 2; }

PAIRS static void prepare(void *operand, const float *x, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t depth) {
    uint16_t *out = (uint16_t *)operand + k0;
    const ptrdiff_t count = k1 - k0, whole = k1 == depth ? round_up(count, 32) : count;
    for (ptrdiff_t k = 0; k < whole; k += 16) {
        const __mmask16 wanted = count - k >= 16 ? 0xffff : count <= k ? 0 : (__mmask16)((1u << (count - k)) - 1);
        _mm256_storeu_si256((__m256i *)(out + k), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(wanted, x + k)));
    }
}

static void multiply(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *w, ptrdiff_t rows, ptrdiff_t n0,
                     ptrdiff_t n1) {
    multiply_panels(panel_by_pairs, y, stride, operands, w, rows, n0, n1);
}

static void multiply_by_tiles(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *w, ptrdiff_t rows,
                              ptrdiff_t n0, ptrdiff_t n1) {
    multiply_panels(panel_by_tiles, y, stride, operands, w, rows, n0, n1);
}

const product pairs_product = {operand_bytes, prepare, multiply, NULL, NULL};
const product wide_product = {wide_operand_bytes, wide_prepare, wide_multiply, NULL, NULL};
const product tiles_product = {operand_bytes, prepare, multiply_by_tiles, tiles_enter, tiles_leave};
