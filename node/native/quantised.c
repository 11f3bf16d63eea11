/* Quantised weights by activations of 8 bits: whole-number dot products over groups of 32, each scaled in float32.
 *
 * A row of activations is quantised as it is prepared: a scale a group of 32 (its greatest magnitude / 127). A group's dot
 * product is exact in int32; an output's sum takes the groups in order, whatever the number of rows, and is the same to the
 * last bit by AVX512-VNNI and by AVX2.
 *
 * Weights lie in panels of 32 outputs. A quad is four values along the depth:
 *   Q8     [width / 32][depth / 4][32][4]   value + 128 in a byte
 *   Q4     [width / 32][depth / 8][32][4]   of a group the low halves are quads 0 to 3, the high halves quads 4 to 7
 *   scales [width / 32][groups][32] float16; Q4: [width / 32][groups][2][32], scales and then minimums
 * The depth is a multiple of 32; a width that is none is filled up with zeros.
 */
#include <math.h>

#include "kernels.h"

#define VNNI __attribute__((target("avx512vnni,avx512f,avx512bw,avx512vl,avx2,fma,f16c")))

enum { GROUP = 32, QUADS = 8 };
/* Groups that are taken at a time where a panel is read more than once: its 32 KiB then stay in the first-level cache. */
enum { DEPTH_GROUPS = 32 };
enum { MOST_TILE = 6, MOST_TILE_AVX2 = 4 };
enum { OF_8 = 0, OF_8_BY_16 = 1, OF_4 = 2 };

/* What stands behind a row's values, for each group. offset: -128 × the sum of its values, which makes good for the 128
 * that are added to weights of 8 bits; halves: the same of its first and last 16. */
typedef struct {
    float scale, scaled_sum;
    int32_t offset, halves[2];
} group_of;

static size_t operand_bytes(ptrdiff_t depth) {
    return (size_t)round_up(round_up(depth, 64) + depth / GROUP * (ptrdiff_t)sizeof(group_of), 64);
}

INLINE group_of *groups_of(const void *operand, ptrdiff_t depth) {
    return (group_of *)((char *)operand + round_up(depth, 64));
}

AVX2 INLINE int32_t sum_epi32(__m128i v) {
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

/* One way for all levels: what is multiplied must not depend on the processor. */
AVX2 static void prepare(void *operand, const float *x, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t depth) {
    int8_t *values = (int8_t *)operand + k0;
    group_of *group = groups_of(operand, depth) + k0 / GROUP;
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256i ones = _mm256_set1_epi16(1), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (ptrdiff_t k = 0; k < k1 - k0; k += GROUP, group++) {
        __m256 part[4], most = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            part[i] = _mm256_loadu_ps(x + k + 8 * i);
            most = _mm256_max_ps(_mm256_and_ps(part[i], magnitude), most);
        }
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        const float greatest = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
        /* A value that is not finite must be seen in the result, and not become some number. */
        const int finite = greatest < 3e38f;
        const __m256 inverse = _mm256_set1_ps(greatest > 1e-30f && finite ? 127.0f / greatest : 0.0f);
        __m256i whole[4];
        float check = 0;
        for (int i = 0; i < 4; i++) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(part[i], inverse));
        const __m256i low = _mm256_packs_epi32(whole[0], whole[1]), high = _mm256_packs_epi32(whole[2], whole[3]);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        _mm256_storeu_si256((__m256i *)(values + k), bytes);
        /* A NaN is lost in a maximum: add all values up once. */
        for (int i = 0; i < 4; i++) part[i] = _mm256_sub_ps(part[i], part[i]);
        const __m256 zeros = _mm256_add_ps(_mm256_add_ps(part[0], part[1]), _mm256_add_ps(part[2], part[3]));
        check = _mm256_movemask_ps(_mm256_cmp_ps(zeros, zeros, _CMP_UNORD_Q)) ? NAN : 0.0f;
        const int32_t first = sum_epi32(_mm_madd_epi16(_mm256_castsi256_si128(ones),
                                                       _mm_add_epi16(_mm_cvtepi8_epi16(_mm256_castsi256_si128(bytes)),
                                                                     _mm_cvtepi8_epi16(_mm_srli_si128(_mm256_castsi256_si128(bytes), 8)))));
        const __m128i upper = _mm256_extracti128_si256(bytes, 1);
        const int32_t second = sum_epi32(_mm_madd_epi16(_mm256_castsi256_si128(ones),
                                                        _mm_add_epi16(_mm_cvtepi8_epi16(upper),
                                                                      _mm_cvtepi8_epi16(_mm_srli_si128(upper, 8)))));
        group->scale = (finite ? greatest / 127.0f : NAN) + check;
        group->scaled_sum = group->scale * (float)(first + second);
        group->halves[0] = -128 * first;
        group->halves[1] = -128 * second;
        group->offset = group->halves[0] + group->halves[1];
    }
}

/* Bytes of a panel's group, and float16 numbers beside it. */
INLINE ptrdiff_t group_bytes(int of) { return of == OF_4 ? GROUP * 16 : GROUP * 32; }
INLINE ptrdiff_t group_scales(int of) { return of == OF_8 ? 32 : 64; }

/* ---- AVX512-VNNI: 16 outputs a vector, two a panel ---- */

VNNI INLINE void tile_vnni(const int of, const int rows, float *y, ptrdiff_t stride, const char *x, size_t x_bytes,
                           ptrdiff_t depth, const uint8_t *data, const uint16_t *scales, ptrdiff_t g0, ptrdiff_t g1,
                           int columns, int add) {
    const uint32_t wanted = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
    const __mmask16 mask[2] = {(__mmask16)wanted, (__mmask16)(wanted >> 16)};
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 sums[MOST_TILE][2];
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++)
            sums[r][v] = add ? _mm512_maskz_loadu_ps(mask[v], y + r * stride + 16 * v) : _mm512_setzero_ps();
    for (ptrdiff_t g = g0; g < g1; g++, data += group_bytes(of), scales += group_scales(of)) {
        __m512i dots[MOST_TILE][2];
#define SCALE(at) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + (at))))
#define GROUP_OF(r) (groups_of(x + (r) * x_bytes, depth) + g)
#define QUAD(r, k) _mm512_set1_epi32(*(const int32_t *)(x + (r) * x_bytes + g * GROUP + 4 * (k)))
#define START(value)                                                                                                     \
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) dots[r][0] = dots[r][1] = _mm512_set1_epi32(value)
#define ADD_QUAD(k, first, second)                                                                                       \
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {                                                             \
        const __m512i quad = QUAD(r, k);                                                                                 \
        dots[r][0] = _mm512_dpbusd_epi32(dots[r][0], first, quad);                                                       \
        dots[r][1] = _mm512_dpbusd_epi32(dots[r][1], second, quad);                                                      \
    }
#define FINISH(at)                                                                                                       \
    for (int v = 0; v < 2; v++) {                                                                                        \
        const __m512 scale = SCALE((at) + 16 * v);                                                                       \
        _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)                                                           \
            sums[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][v]),                                                 \
                                         _mm512_mul_ps(scale, _mm512_set1_ps(GROUP_OF(r)->scale)), sums[r][v]);          \
    }
        if (rows <= 4)
            for (int line = 0; line < group_bytes(of) / 64; line++)
                _mm_prefetch((const char *)data + 4096 + 64 * line, _MM_HINT_T0);
        if (of == OF_4) {
            START(0);
            _Pragma("GCC unroll 4") for (int k = 0; k < QUADS / 2; k++) {
                const __m512i first = _mm512_loadu_si512(data + 128 * k), second = _mm512_loadu_si512(data + 128 * k + 64);
                ADD_QUAD(k, _mm512_and_si512(first, nibble), _mm512_and_si512(second, nibble))
                ADD_QUAD(k + 4, _mm512_and_si512(_mm512_srli_epi16(first, 4), nibble),
                         _mm512_and_si512(_mm512_srli_epi16(second, 4), nibble))
            }
            FINISH(0)
            for (int v = 0; v < 2; v++) {
                const __m512 minimum = SCALE(32 + 16 * v);
                _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)
                    sums[r][v] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(GROUP_OF(r)->scaled_sum), sums[r][v]);
            }
        } else if (of == OF_8) {
            START(GROUP_OF(r)->offset);
            _Pragma("GCC unroll 8") for (int k = 0; k < QUADS; k++)
                ADD_QUAD(k, _mm512_loadu_si512(data + 128 * k), _mm512_loadu_si512(data + 128 * k + 64))
            FINISH(0)
        } else {
            for (int half = 0; half < 2; half++) {
                START(GROUP_OF(r)->halves[half]);
                _Pragma("GCC unroll 4") for (int k = 0; k < QUADS / 2; k++)
                    ADD_QUAD(4 * half + k, _mm512_loadu_si512(data + 128 * (4 * half + k)),
                             _mm512_loadu_si512(data + 128 * (4 * half + k) + 64))
                FINISH(32 * half)
            }
        }
#undef SCALE
#undef START
#undef ADD_QUAD
#undef FINISH
#undef QUAD
    }
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) _mm512_mask_storeu_ps(y + r * stride + 16 * v, mask[v], sums[r][v]);
}

/* ---- AVX2: 8 outputs a vector, four a panel; products of two pairs are summed in int16, which 4 or 8 of them fill ---- */

AVX2 INLINE void tile_avx2(const int of, const int rows, float *y, ptrdiff_t stride, const char *x, size_t x_bytes,
                           ptrdiff_t depth, const uint8_t *panel, const uint16_t *panel_scales, ptrdiff_t g0, ptrdiff_t g1,
                           int columns, int add) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int v = 0; 8 * v < columns; v++) {
        const uint8_t *data = panel + 32 * v;
        const uint16_t *scales = panel_scales + 8 * v;
        const int count = columns - 8 * v < 8 ? columns - 8 * v : 8;
        __m256 sums[MOST_TILE_AVX2];
        for (int r = 0; r < rows; r++) {
            float kept[8] = {0};
            if (add) memcpy(kept, y + r * stride + 8 * v, sizeof(float) * (size_t)count);
            sums[r] = _mm256_loadu_ps(kept);
        }
        for (ptrdiff_t g = g0; g < g1; g++, data += group_bytes(of), scales += group_scales(of)) {
            __m256i low[MOST_TILE_AVX2], high[MOST_TILE_AVX2];
#define SCALE(at) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + (at))))
#define START()                                                                                                          \
    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) low[r] = high[r] = _mm256_setzero_si256()
#define QUAD(r, k) _mm256_set1_epi32(*(const int32_t *)(x + (r) * x_bytes + g * GROUP + 4 * (k)))
            if (of == OF_4) {
                START();
                _Pragma("GCC unroll 4") for (int k = 0; k < QUADS / 2; k++) {
                    const __m256i both = _mm256_loadu_si256((const __m256i *)(data + 128 * k));
                    const __m256i first = _mm256_and_si256(both, nibble);
                    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
                    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
                        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(first, QUAD(r, k)));
                        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(second, QUAD(r, k + 4)));
                    }
                }
                const __m256 scale = SCALE(0), minimum = SCALE(32);
                _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
                    const __m256 dots = _mm256_cvtepi32_ps(_mm256_madd_epi16(low[r], ones));
                    sums[r] = _mm256_fmadd_ps(dots, _mm256_mul_ps(scale, _mm256_set1_ps(GROUP_OF(r)->scale)), sums[r]);
                    sums[r] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(GROUP_OF(r)->scaled_sum), sums[r]);
                }
                continue;
            }
            for (int half = 0; half < (of == OF_8 ? 1 : 2); half++) {
                START();
                for (int k = 0; k < (of == OF_8 ? QUADS : QUADS / 2); k++) {
                    const int at = 4 * half + k;
                    const __m256i both = _mm256_loadu_si256((const __m256i *)(data + 128 * at));
                    const __m256i first = _mm256_and_si256(both, nibble);
                    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
                    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
                        const __m256i quad = QUAD(r, at);
                        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(first, quad));
                        high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(second, quad));
                    }
                }
                const __m256 scale = SCALE(32 * half);
                _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
                    const int32_t offset = of == OF_8 ? GROUP_OF(r)->offset : GROUP_OF(r)->halves[half];
                    __m256i dots = _mm256_slli_epi32(_mm256_madd_epi16(high[r], ones), 4);
                    dots = _mm256_add_epi32(_mm256_add_epi32(dots, _mm256_madd_epi16(low[r], ones)), _mm256_set1_epi32(offset));
                    sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots),
                                              _mm256_mul_ps(scale, _mm256_set1_ps(GROUP_OF(r)->scale)), sums[r]);
                }
            }
#undef SCALE
#undef START
#undef QUAD
        }
        for (int r = 0; r < rows; r++) {
            float kept[8];
            _mm256_storeu_ps(kept, sums[r]);
            memcpy(y + r * stride + 8 * v, kept, sizeof(float) * (size_t)count);
        }
    }
}

/* ---- AVX2, WIDE_ROWS rows or more: weights are widened to int16 once for up to WIDE_BLOCK rows, and two products of 16
 * bits are summed in int32 by one instruction. For fewer rows widening costs more than it saves. ---- */

enum { WIDE_ROWS = 8, WIDE_BLOCK = 64, WIDE_GROUPS = 4, WIDE_TILE = 4 };

/* Behind the groups, the values once more as int16, of each quad the first and third and then the second and fourth. */
INLINE ptrdiff_t wide_at(ptrdiff_t depth) { return (ptrdiff_t)operand_bytes(depth); }

/* An odd number of cache lines: rows then do not share the few sets that a power of two would leave them. */
static size_t operand_bytes_avx2(ptrdiff_t depth) {
    return (size_t)((wide_at(depth) + 2 * round_up(depth, 32)) / 64 | 1) * 64;
}

AVX2 static void prepare_avx2(void *operand, const float *x, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t depth) {
    prepare(operand, x, k0, k1, depth);
    const __m256i order = _mm256_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9,
                                           11, 12, 14, 13, 15);
    __m256i *wide = (__m256i *)((char *)operand + wide_at(depth) + 2 * k0);
    for (ptrdiff_t k = k0; k < k1; k += GROUP, wide += 2) {
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)((int8_t *)operand + k)), order);
        _mm256_storeu_si256(wide, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)));
        _mm256_storeu_si256(wide + 1, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1)));
    }
}

/* One group of a Q8 panel → int16 [4][16][8][2]: eight outputs, pairs of the depth. */
AVX2 INLINE void widen_group(__m256i *wide, const uint8_t *data) {
    const __m256i middle = _mm256_set1_epi8((char)128);
    for (int k = 0; k < QUADS; k++)
        for (int v = 0; v < 4; v++) {
            const __m256i quads = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(data + 128 * k + 32 * v)), middle);
            wide[16 * v + 2 * k] = _mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8);
            wide[16 * v + 2 * k + 1] = _mm256_srai_epi16(quads, 8);
        }
}

/* sums [rows][32] += rows by `count` widened groups. group: of the first row; x: its int16 values there. */
AVX2 INLINE void tile_wide(const int of, const int rows, float *sums, const char *x, const group_of *group, size_t x_bytes,
                           const __m256i *wide, const uint16_t *scales, ptrdiff_t count) {
    enum { PAIRS_OF_16 = 8 };
    for (int v = 0; v < 4; v += 2)
        for (ptrdiff_t g = 0; g < count; g++)
            for (int half = 0; half < (of == OF_8 ? 1 : 2); half++) {
                const __m256i *w = wide + 64 * g + 16 * v + PAIRS_OF_16 * half;
                const char *from = x + 2 * GROUP * g + 4 * PAIRS_OF_16 * half;
                __m256i dots[WIDE_TILE][2];
                _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
                for (int part = 0; part < (of == OF_8 ? 4 : 2); part++, w += 4, from += 16)
                    _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {
                        const __m256i first = w[k], second = w[k + 16];
                        _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
                            const __m256i pair = _mm256_set1_epi32(*(const int32_t *)(from + r * x_bytes + 4 * k));
                            dots[r][0] = _mm256_add_epi32(dots[r][0], _mm256_madd_epi16(first, pair));
                            dots[r][1] = _mm256_add_epi32(dots[r][1], _mm256_madd_epi16(second, pair));
                            /* GCC would add products to each other first, and run out of registers. */
                            __asm__("" : "+x"(dots[r][0]), "+x"(dots[r][1]));
                        }
                    }
                _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) {
                    const uint16_t *own = scales + group_scales(of) * g + 32 * half + 8 * (v + i);
                    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)own));
                    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {
                        const float factor = ((const group_of *)((const char *)group + r * x_bytes))[g].scale;
                        float *sum = sums + CHUNK * r + 8 * (v + i);
                        _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][i]),
                                                              _mm256_mul_ps(scale, _mm256_set1_ps(factor)),
                                                              _mm256_loadu_ps(sum)));
                    }
                }
            }
}

/* Up to WIDE_BLOCK rows by one panel. */
AVX2 INLINE void multiply_wide(const int of, float *y, ptrdiff_t stride, const char *x, size_t x_bytes, ptrdiff_t depth,
                               ptrdiff_t rows, const uint8_t *panel, const uint16_t *scales, int columns) {
    const ptrdiff_t groups = depth / GROUP;
    _Alignas(64) __m256i wide[WIDE_GROUPS * 64];
    _Alignas(64) float sums[WIDE_BLOCK * CHUNK];
    memset(sums, 0, sizeof(float) * CHUNK * (size_t)rows);
    for (ptrdiff_t g = 0; g < groups; g += WIDE_GROUPS) {
        const ptrdiff_t count = least(WIDE_GROUPS, groups - g);
        for (ptrdiff_t i = 0; i < count; i++) widen_group(wide + 64 * i, panel + (g + i) * group_bytes(of));
#define WIDE(R)                                                                                                          \
    tile_wide(of, R, sums + CHUNK * m, x + m * x_bytes + wide_at(depth) + 2 * GROUP * g,                                 \
              groups_of(x + m * x_bytes, depth) + g, x_bytes, wide, scales + g * group_scales(of), count)
        ptrdiff_t m = 0;
        for (; m + WIDE_TILE <= rows; m += WIDE_TILE) WIDE(WIDE_TILE);
        for (; m < rows; m++) WIDE(1);
#undef WIDE
    }
    for (ptrdiff_t r = 0; r < rows; r++) memcpy(y + r * stride, sums + CHUNK * r, sizeof(float) * (size_t)columns);
}

#define DEFINE_WIDE(NAME, OF, FEW)                                                                                       \
    AVX2 static void NAME(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *w, ptrdiff_t rows,          \
                          ptrdiff_t n0, ptrdiff_t n1) {                                                                  \
        const ptrdiff_t groups = w->depth / GROUP;                                                                       \
        const size_t bytes = operand_bytes_avx2(w->depth);                                                               \
        if (rows < WIDE_ROWS) {                                                                                          \
            FEW(y, stride, operands, w, rows, n0, n1);                                                                   \
            return;                                                                                                      \
        }                                                                                                                \
        for (ptrdiff_t n = n0; n < n1; n += CHUNK)                                                                       \
            for (ptrdiff_t m = 0; m < rows; m += WIDE_BLOCK)                                                             \
                multiply_wide(OF, y + m * stride + n - n0, stride, (const char *)operands + (size_t)m * bytes, bytes,    \
                              w->depth, least(WIDE_BLOCK, rows - m),                                                     \
                              (const uint8_t *)w->data + n / CHUNK * groups * group_bytes(OF),                           \
                              (const uint16_t *)w->scales + n / CHUNK * groups * group_scales(OF),                       \
                              (int)least(CHUNK, n1 - n));                                                                \
    }

/* All rows by the panels of outputs [n0, n1): as even tiles as can be, some groups of the depth at a time. */
#define DEFINE(NAME, TARGET, OF, TILE, MOST, STEP, BYTES, CASES)                                                              \
    TARGET static void NAME(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *w, ptrdiff_t rows,        \
                            ptrdiff_t n0, ptrdiff_t n1) {                                                                \
        const ptrdiff_t depth = w->depth, groups = depth / GROUP;                                                        \
        const ptrdiff_t step = STEP;                                                                                     \
        const size_t bytes = BYTES(depth);                                                                               \
        for (ptrdiff_t n = n0; n < n1; n += CHUNK) {                                                                     \
            const uint8_t *panel = (const uint8_t *)w->data + n / CHUNK * groups * group_bytes(OF);                      \
            const uint16_t *scales = (const uint16_t *)w->scales + n / CHUNK * groups * group_scales(OF);                \
            const int columns = (int)least(CHUNK, n1 - n);                                                               \
            for (ptrdiff_t g = 0; g < groups; g += step) {                                                               \
                ptrdiff_t tiles = (rows + (MOST) - 1) / (MOST);                                                          \
                for (ptrdiff_t m = 0; tiles; tiles--) {                                                                  \
                    const ptrdiff_t now = (rows - m + tiles - 1) / tiles;                                                \
                    float *out = y + m * stride + n - n0;                                                                \
                    const char *x = (const char *)operands + (size_t)m * bytes;                                          \
                    switch (now) { CASES(TILE, OF) }                                                                     \
                    m += now;                                                                                            \
                }                                                                                                        \
            }                                                                                                            \
        }                                                                                                                \
    }
#define ONE(TILE, OF, N)                                                                                                 \
    case N:                                                                                                              \
        TILE(OF, N, out, stride, x, bytes, depth, panel + g * group_bytes(OF), scales + g * group_scales(OF), g,         \
             least(groups, g + step), columns, g > 0);                                                                   \
        break;
#define FOUR(TILE, OF) ONE(TILE, OF, 1) ONE(TILE, OF, 2) ONE(TILE, OF, 3) ONE(TILE, OF, 4)
#define SIX(TILE, OF) FOUR(TILE, OF) ONE(TILE, OF, 5) ONE(TILE, OF, 6)

DEFINE(multiply_few_q8_avx2, AVX2, OF_8, tile_avx2, MOST_TILE_AVX2, DEPTH_GROUPS / 2, operand_bytes_avx2, FOUR)
DEFINE(multiply_few_q8_by_16_avx2, AVX2, OF_8_BY_16, tile_avx2, MOST_TILE_AVX2, DEPTH_GROUPS / 2, operand_bytes_avx2, FOUR)
DEFINE(multiply_q4_avx2, AVX2, OF_4, tile_avx2, MOST_TILE_AVX2, DEPTH_GROUPS / 2, operand_bytes_avx2, FOUR)
DEFINE_WIDE(multiply_q8_avx2, OF_8, multiply_few_q8_avx2)
DEFINE_WIDE(multiply_q8_by_16_avx2, OF_8_BY_16, multiply_few_q8_by_16_avx2)
DEFINE(multiply_q8_vnni, VNNI, OF_8, tile_vnni, MOST_TILE, rows > MOST_TILE ? DEPTH_GROUPS : groups, operand_bytes, SIX)
DEFINE(multiply_q8_by_16_vnni, VNNI, OF_8_BY_16, tile_vnni, MOST_TILE, rows > MOST_TILE ? DEPTH_GROUPS : groups, operand_bytes, SIX)
DEFINE(multiply_q4_vnni, VNNI, OF_4, tile_vnni, MOST_TILE, rows > MOST_TILE ? DEPTH_GROUPS : groups, operand_bytes, SIX)

typedef void multiply_fn(float *, ptrdiff_t, const void *, const lp_matrix *, ptrdiff_t, ptrdiff_t, ptrdiff_t);

static int has_vnni(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni") != 0;
}

/* A stack's data are matrices of the other three kinds, one under the other, each of a multiple of CHUNK outputs but the
 * last; their operands are the same. */
#define DEFINE_STACK(NAME, Q8, Q8_BY_16, Q4)                                                                             \
    static void NAME(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *w, ptrdiff_t rows, ptrdiff_t n0,  \
                     ptrdiff_t n1) {                                                                                     \
        const lp_matrix *own = w->data;                                                                                  \
        for (ptrdiff_t first = 0; first < n1; first += own->width, own++) {                                              \
            const ptrdiff_t from = greatest(n0, first), to = least(n1, first + own->width);                              \
            if (from >= to) continue;                                                                                    \
            multiply_fn *const by = own->kind == KIND_Q8 ? Q8 : own->kind == KIND_Q4 ? Q4 : Q8_BY_16;                     \
            by(y + from - n0, stride, operands, own, rows, from - first, to - first);                                    \
        }                                                                                                                \
    }
DEFINE_STACK(multiply_stack_avx2, multiply_q8_avx2, multiply_q8_by_16_avx2, multiply_q4_avx2)
DEFINE_STACK(multiply_stack_vnni, multiply_q8_vnni, multiply_q8_by_16_vnni, multiply_q4_vnni)

static const product by_avx2[4] = {{operand_bytes_avx2, prepare_avx2, multiply_q8_avx2, NULL, NULL},
                                   {operand_bytes_avx2, prepare_avx2, multiply_q8_by_16_avx2, NULL, NULL},
                                   {operand_bytes_avx2, prepare_avx2, multiply_q4_avx2, NULL, NULL},
                                   {operand_bytes_avx2, prepare_avx2, multiply_stack_avx2, NULL, NULL}};
static const product by_vnni[4] = {{operand_bytes, prepare, multiply_q8_vnni, NULL, NULL},
                                   {operand_bytes, prepare, multiply_q8_by_16_vnni, NULL, NULL},
                                   {operand_bytes, prepare, multiply_q4_vnni, NULL, NULL},
                                   {operand_bytes, prepare, multiply_stack_vnni, NULL, NULL}};

const product *quantised_product(int64_t kind, int level) {
    return &(level > LEVEL_AVX2 && has_vnni() ? by_vnni : by_avx2)[kind - KIND_Q8];
}
