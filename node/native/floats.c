/* float32 arithmetic: weights and caches at rest in float32, bfloat16 or float16 are widened in registers.
 *
 * So a step reads the bytes of the storage dtype and needs no 16-bit arithmetic of the CPU. For AVX2 with FMA and F16C, and
 * for AVX-512. Every sum runs in one order whatever the number of rows.
 */
#include <math.h>

#include "kernels.h"

enum { DEPTH_BLOCK = 1024 };

AVX2 INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#define LOAD8_BF16(p) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define LOAD8_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define LOAD16_BF16(p) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#define LOAD16_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define SAME(value) (value)

/* For one instruction set and storage type:
 *   NAME_tile      `tile` rows by `outputs` columns of y over one block of the depth
 *   NAME_multiply  see `product` in kernels.h; the operands are float32
 *   NAME_gate      silu(gate) × up
 *   NAME_norm      RMS norm
 *   NAME_attend    one row's queries of one KV head over its cached tokens
 * LOAD widens LANES stored values to float32. */
#define DEFINE_KERNELS(NAME, TARGET, TYPE, VECTOR, LANES, ZERO, ONES, LOADX, STOREX, LOAD, FMA, SUM, TAIL)               \
    TARGET INLINE void NAME##_tile(const int tile, const int outputs, float *y, const float *x, const TYPE *w,           \
                                   ptrdiff_t stride, ptrdiff_t x_stride, ptrdiff_t depth, ptrdiff_t k0, ptrdiff_t k1) {  \
        const ptrdiff_t kv = k0 + (k1 - k0) / (LANES) * (LANES);                                                         \
        VECTOR sums[6][4];                                                                                               \
        _Pragma("GCC unroll 6") for (int r = 0; r < tile; r++)                                                           \
            _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) sums[r][n] = ZERO;                                 \
        for (ptrdiff_t k = k0; k < kv; k += (LANES)) {                                                                   \
            VECTOR pw[4];                                                                                                \
            _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) pw[n] = LOAD(w + n * depth + k);                   \
            _Pragma("GCC unroll 6") for (int r = 0; r < tile; r++) {                                                     \
                const VECTOR px = LOADX(x + r * x_stride + k);                                                           \
                _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) sums[r][n] = FMA(px, pw[n], sums[r][n]);       \
            }                                                                                                            \
        }                                                                                                                \
        _Pragma("GCC unroll 6") for (int r = 0; r < tile; r++)                                                           \
            _Pragma("GCC unroll 4") for (int n = 0; n < outputs; n++) {                                                  \
                float total = SUM(sums[r][n]);                                                                           \
                for (ptrdiff_t k = kv; k < k1; k++) total += x[r * x_stride + k] * TAIL(w[n * depth + k]);               \
                float *out = y + r * stride + n;                                                                         \
                *out = k0 ? *out + total : total;                                                                        \
            }                                                                                                            \
    }                                                                                                                    \
    TARGET INLINE void NAME##_rows(const int outputs, float *y, const float *x, const TYPE *w, ptrdiff_t rows,           \
                                   ptrdiff_t stride, ptrdiff_t x_stride, ptrdiff_t depth, ptrdiff_t k0, ptrdiff_t k1) {  \
        ptrdiff_t m = 0;                                                                                                 \
        /* As many sums as there are registers: 24 of 32 with AVX-512, 8 of 16 with AVX2. */                             \
        for (; (LANES) == 16 && rows - m >= 6 && rows - m != 8; m += 6)                                                  \
            NAME##_tile(6, outputs, y + m * stride, x + m * x_stride, w, stride, x_stride, depth, k0, k1);               \
        for (; (LANES) == 16 && rows - m >= 4; m += 4)                                                                   \
            NAME##_tile(4, outputs, y + m * stride, x + m * x_stride, w, stride, x_stride, depth, k0, k1);               \
        for (; rows - m >= 2; m += 2)                                                                                    \
            NAME##_tile(2, outputs, y + m * stride, x + m * x_stride, w, stride, x_stride, depth, k0, k1);               \
        if (m < rows) NAME##_tile(1, outputs, y + m * stride, x + m * x_stride, w, stride, x_stride, depth, k0, k1);     \
    }                                                                                                                    \
    TARGET static void NAME##_multiply(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *matrix,        \
                                       ptrdiff_t rows, ptrdiff_t n0, ptrdiff_t n1) {                                     \
        const TYPE *w = matrix->data;                                                                                    \
        const float *x = operands;                                                                                       \
        const ptrdiff_t depth = matrix->depth, x_stride = round_up(depth, 16);                                           \
        for (ptrdiff_t k0 = 0; k0 < depth; k0 += DEPTH_BLOCK) {                                                          \
            const ptrdiff_t k1 = least(k0 + DEPTH_BLOCK, depth);                                                         \
            ptrdiff_t n = n0;                                                                                            \
            for (; n + 4 <= n1; n += 4)                                                                                  \
                NAME##_rows(4, y + n - n0, x, w + n * depth, rows, stride, x_stride, depth, k0, k1);                     \
            for (; n < n1; n++) NAME##_rows(1, y + n - n0, x, w + n * depth, rows, stride, x_stride, depth, k0, k1);     \
        }                                                                                                                \
    }                                                                                                                    \
    TARGET static void NAME##_attend(float *out, const float *q, const void *k_cache, const void *v_cache,               \
                                     const int64_t *blocks, ptrdiff_t first, ptrdiff_t stop, ptrdiff_t block_tokens,     \
                                     int group, int dim, float scale, float *scores) {                                   \
        const ptrdiff_t length = stop - first;                                                                           \
        float most[MOST_GROUP];                                                                                          \
        for (int g = 0; g < group; g++) most[g] = -INFINITY;                                                             \
        for (ptrdiff_t at = first; at < stop;) {                                                                         \
            const ptrdiff_t offset = at % block_tokens;                                                                  \
            const ptrdiff_t run = block_tokens - offset < stop - at ? block_tokens - offset : stop - at;                 \
            const TYPE *keys = (const TYPE *)k_cache + (blocks[at / block_tokens] * block_tokens + offset) * dim;        \
            for (ptrdiff_t t = 0; t < run; t++, keys += dim)                                                             \
                for (int g = 0; g < group; g++) {                                                                        \
                    VECTOR sum = ZERO;                                                                                   \
                    for (int d = 0; d < dim; d += (LANES)) sum = FMA(LOADX(q + g * dim + d), LOAD(keys + d), sum);       \
                    const float score = SUM(sum) * scale;                                                                \
                    scores[g * length + at - first + t] = score;                                                         \
                    most[g] = score > most[g] ? score : most[g];                                                         \
                }                                                                                                        \
            at += run;                                                                                                   \
        }                                                                                                                \
        for (int g = 0; g < group; g++) {                                                                                \
            float total = 0, *own = scores + g * length;                                                                 \
            for (ptrdiff_t t = 0; t < length; t++) total += own[t] = exponential(own[t] - most[g]);                      \
            for (ptrdiff_t t = 0; t < length; t++) own[t] /= total;                                                      \
            memset(out + g * dim, 0, sizeof(float) * dim);                                                               \
        }                                                                                                                \
        for (ptrdiff_t at = first; at < stop;) {                                                                         \
            const ptrdiff_t offset = at % block_tokens;                                                                  \
            const ptrdiff_t run = block_tokens - offset < stop - at ? block_tokens - offset : stop - at;                 \
            const TYPE *values = (const TYPE *)v_cache + (blocks[at / block_tokens] * block_tokens + offset) * dim;      \
            for (int d = 0; d < dim; d += (LANES))                                                                       \
                for (int g = 0; g < group; g++) {                                                                        \
                    VECTOR sum = LOADX(out + g * dim + d);                                                               \
                    const float *own = scores + g * length + at - first;                                                 \
                    for (ptrdiff_t t = 0; t < run; t++) sum = FMA(ONES(own[t]), LOAD(values + t * dim + d), sum);        \
                    STOREX(out + g * dim + d, sum);                                                                      \
                }                                                                                                        \
            at += run;                                                                                                   \
        }                                                                                                                \
    }

#define DEFINE_AVX2(NAME, TYPE, LOAD, TAIL)                                                                               \
    DEFINE_KERNELS(NAME, AVX2, TYPE, __m256, 8, _mm256_setzero_ps(), _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps,   \
                   LOAD, _mm256_fmadd_ps, sum8, TAIL)
#define DEFINE_AVX512(NAME, TYPE, LOAD, TAIL)                                                                             \
    DEFINE_KERNELS(NAME, AVX512, TYPE, __m512, 16, _mm512_setzero_ps(), _mm512_set1_ps, _mm512_loadu_ps,                  \
                   _mm512_storeu_ps, LOAD, _mm512_fmadd_ps, _mm512_reduce_add_ps, TAIL)

DEFINE_AVX2(f32_avx2, float, _mm256_loadu_ps, SAME)
DEFINE_AVX2(bf16_avx2, uint16_t, LOAD8_BF16, widen_bf16)
DEFINE_AVX2(f16_avx2, uint16_t, LOAD8_F16, _cvtsh_ss)
DEFINE_AVX512(f32_avx512, float, _mm512_loadu_ps, SAME)
DEFINE_AVX512(bf16_avx512, uint16_t, LOAD16_BF16, widen_bf16)
DEFINE_AVX512(f16_avx512, uint16_t, LOAD16_F16, _cvtsh_ss)

/* out may be x. The sums have one order at each level: lane by lane, then the lanes. */
#define DEFINE_ROWS(NAME, TARGET, VECTOR, LANES, ZERO, LOADX, FMA, SUM)                                                 \
    TARGET static void NAME##_norm(float *out, const float *x, const float *weight, ptrdiff_t size, float eps) {       \
        VECTOR sum = ZERO;                                                                                              \
        ptrdiff_t i = 0;                                                                                                \
        for (; i + (LANES) <= size; i += (LANES)) sum = FMA(LOADX(x + i), LOADX(x + i), sum);                           \
        float total = SUM(sum);                                                                                         \
        for (; i < size; i++) total += x[i] * x[i];                                                                     \
        const float factor = 1.0f / sqrtf(total / (float)size + eps);                                                   \
        for (i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];                                                  \
    }                                                                                                                   \
    TARGET static void NAME##_gate(float *out, const float *gate, const float *up, ptrdiff_t count) {                   \
        for (ptrdiff_t i = 0; i < count; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];                \
    }

DEFINE_ROWS(avx2, AVX2, __m256, 8, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_fmadd_ps, sum8)
DEFINE_ROWS(avx512, AVX512, __m512, 16, _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps)

static size_t operand_bytes(ptrdiff_t depth) { return (size_t)round_up(depth, 16) * sizeof(float); }

static void prepare(void *operand, const float *x, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t depth) {
    (void)depth;
    memcpy((float *)operand + k0, x, sizeof(float) * (size_t)(k1 - k0));
}

#define FLOATS(multiply) {operand_bytes, prepare, multiply, NULL, NULL}
const product float_products[2][3] = {
    {FLOATS(f32_avx2_multiply), FLOATS(bf16_avx2_multiply), FLOATS(f16_avx2_multiply)},
    {FLOATS(f32_avx512_multiply), FLOATS(bf16_avx512_multiply), FLOATS(f16_avx512_multiply)},
};
static attend_fn *const ATTEND[2][3] = {{f32_avx2_attend, bf16_avx2_attend, f16_avx2_attend},
                                        {f32_avx512_attend, bf16_avx512_attend, f16_avx512_attend}};

attend_fn *attend_of(int dtype, int level) { return ATTEND[level > LEVEL_AVX2][dtype]; }
gate_fn *gate_of(int level) { return level > LEVEL_AVX2 ? avx512_gate : avx2_gate; }
norm_fn *norm_of(int level) { return level > LEVEL_AVX2 ? avx512_norm : avx2_norm; }
