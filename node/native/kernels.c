/* Matrix products for a decoder's linear layers on CPUs whose 16-bit arithmetic is slow or absent.
 *
 * y[m, n] = sum_k x[m, k] * w[n, k], with x and y in float32 and w at rest in bfloat16, float16 or float32. Weights are
 * widened in registers, so a step reads the bytes of the storage dtype and computes in float32: half of float32's memory
 * traffic for the few rows of a decode step, float32's arithmetic for the many of a prefill.
 *
 * Built without linking OpenMP: the GOMP_* symbols resolve to the runtime that torch has loaded (see kernels.py), so
 * that one process has one pool of threads. Nothing here allocates, and nothing reads outside the given extents.
 */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define API __attribute__((visibility("default")))
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))

enum { ROW_TILE = 4, OUTPUT_CHUNK = 32, DEPTH_BLOCK = 1024 };

static inline float widen_bf16(uint16_t value) {
    union { uint32_t bits; float number; } both = {(uint32_t)value << 16};
    return both.number;
}

/* One instruction set and storage type: `outputs` [n0, n1) of every row. LOAD widens LANES weights to float32. */
#define DEFINE_LINEAR(NAME, TARGET, TYPE, VECTOR, LANES, ZERO, LOADX, LOAD, FMA, SUM, TAIL)                             \
    TARGET static void NAME(float *y, const float *x, const TYPE *w, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t depth,  \
                            ptrdiff_t n0, ptrdiff_t n1) {                                                               \
        for (ptrdiff_t k0 = 0; k0 < depth; k0 += DEPTH_BLOCK) {                                                         \
            const ptrdiff_t k1 = k0 + DEPTH_BLOCK < depth ? k0 + DEPTH_BLOCK : depth;                                   \
            const ptrdiff_t kv = k0 + (k1 - k0) / (LANES) * (LANES);                                                    \
            for (ptrdiff_t n = n0; n < n1; n += 2) {                                                                    \
                const int pair = n + 1 < n1;                                                                            \
                const TYPE *wa = w + n * depth, *wb = pair ? wa + depth : wa;                                           \
                for (ptrdiff_t m = 0; m < rows; m += ROW_TILE) {                                                        \
                    const int tile = rows - m < ROW_TILE ? (int)(rows - m) : ROW_TILE;                                  \
                    const float *xm = x + m * depth;                                                                    \
                    float a[ROW_TILE] = {0}, b[ROW_TILE] = {0};                                                         \
                    if (tile == ROW_TILE) {                                                                             \
                        VECTOR va[ROW_TILE], vb[ROW_TILE];                                                              \
                        for (int r = 0; r < ROW_TILE; r++) va[r] = vb[r] = ZERO;                                        \
                        for (ptrdiff_t k = k0; k < kv; k += (LANES)) {                                                  \
                            const VECTOR pa = LOAD(wa + k), pb = LOAD(wb + k);                                          \
                            for (int r = 0; r < ROW_TILE; r++) {                                                        \
                                const VECTOR px = LOADX(xm + r * depth + k);                                            \
                                va[r] = FMA(px, pa, va[r]);                                                             \
                                vb[r] = FMA(px, pb, vb[r]);                                                             \
                            }                                                                                           \
                        }                                                                                               \
                        for (int r = 0; r < ROW_TILE; r++) a[r] = SUM(va[r]), b[r] = SUM(vb[r]);                        \
                    } else {                                                                                            \
                        for (int r = 0; r < tile; r++) {                                                                \
                            VECTOR va = ZERO, vb = ZERO, ua = ZERO, ub = ZERO;                                          \
                            const float *xr = xm + r * depth;                                                           \
                            ptrdiff_t k = k0;                                                                           \
                            for (; k + 2 * (LANES) <= kv; k += 2 * (LANES)) {                                           \
                                const VECTOR px = LOADX(xr + k), qx = LOADX(xr + k + (LANES));                          \
                                va = FMA(px, LOAD(wa + k), va);                                                         \
                                ua = FMA(qx, LOAD(wa + k + (LANES)), ua);                                               \
                                vb = FMA(px, LOAD(wb + k), vb);                                                         \
                                ub = FMA(qx, LOAD(wb + k + (LANES)), ub);                                               \
                            }                                                                                           \
                            for (; k < kv; k += (LANES)) {                                                              \
                                const VECTOR px = LOADX(xr + k);                                                        \
                                va = FMA(px, LOAD(wa + k), va);                                                         \
                                vb = FMA(px, LOAD(wb + k), vb);                                                         \
                            }                                                                                           \
                            a[r] = SUM(va) + SUM(ua), b[r] = SUM(vb) + SUM(ub);                                         \
                        }                                                                                               \
                    }                                                                                                   \
                    for (int r = 0; r < tile; r++) {                                                                    \
                        for (ptrdiff_t k = kv; k < k1; k++) {                                                           \
                            a[r] += xm[r * depth + k] * TAIL(wa[k]);                                                    \
                            b[r] += xm[r * depth + k] * TAIL(wb[k]);                                                    \
                        }                                                                                               \
                        float *out = y + (m + r) * width + n;                                                           \
                        out[0] = k0 ? out[0] + a[r] : a[r];                                                             \
                        if (pair) out[1] = k0 ? out[1] + b[r] : b[r];                                                   \
                    }                                                                                                   \
                }                                                                                                       \
            }                                                                                                           \
        }                                                                                                               \
    }

AVX2 static inline float sum8(__m256 v) {
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

DEFINE_LINEAR(bf16_avx2, AVX2, uint16_t, __m256, 8, _mm256_setzero_ps(), _mm256_loadu_ps, LOAD8_BF16, _mm256_fmadd_ps,
              sum8, widen_bf16)
DEFINE_LINEAR(f16_avx2, AVX2, uint16_t, __m256, 8, _mm256_setzero_ps(), _mm256_loadu_ps, LOAD8_F16, _mm256_fmadd_ps, sum8,
              _cvtsh_ss)
DEFINE_LINEAR(f32_avx2, AVX2, float, __m256, 8, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_loadu_ps, _mm256_fmadd_ps,
              sum8, SAME)
DEFINE_LINEAR(bf16_avx512, AVX512, uint16_t, __m512, 16, _mm512_setzero_ps(), _mm512_loadu_ps, LOAD16_BF16,
              _mm512_fmadd_ps, _mm512_reduce_add_ps, widen_bf16)
DEFINE_LINEAR(f16_avx512, AVX512, uint16_t, __m512, 16, _mm512_setzero_ps(), _mm512_loadu_ps, LOAD16_F16, _mm512_fmadd_ps,
              _mm512_reduce_add_ps, _cvtsh_ss)
DEFINE_LINEAR(f32_avx512, AVX512, float, __m512, 16, _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_loadu_ps,
              _mm512_fmadd_ps, _mm512_reduce_add_ps, SAME)

/* 0: this CPU has neither AVX2 with FMA and F16C nor more; 2: AVX2; 3: AVX-512. */
API int lp_instruction_set(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
               ? 3 : 2;
}

/* dtype: 0 float32, 1 bfloat16, 2 float16. level: what lp_instruction_set returned, or less. Row-major and contiguous:
 * x [rows, depth], w [width, depth], y [rows, width]. Returns 0, or -1 for a dtype or level that it does not have. */
API int lp_linear(float *y, const float *x, const void *w, int64_t rows, int64_t width, int64_t depth, int dtype,
                  int level) {
    if (dtype < 0 || dtype > 2 || (level != 2 && level != 3)) return -1;
    const ptrdiff_t chunks = (width + OUTPUT_CHUNK - 1) / OUTPUT_CHUNK;
#pragma omp parallel for schedule(dynamic, 1)
    for (ptrdiff_t chunk = 0; chunk < chunks; chunk++) {
        const ptrdiff_t n0 = chunk * OUTPUT_CHUNK, n1 = n0 + OUTPUT_CHUNK < width ? n0 + OUTPUT_CHUNK : width;
        if (level == 3) {
            if (dtype == 1) bf16_avx512(y, x, w, rows, width, depth, n0, n1);
            else if (dtype == 2) f16_avx512(y, x, w, rows, width, depth, n0, n1);
            else f32_avx512(y, x, w, rows, width, depth, n0, n1);
        } else {
            if (dtype == 1) bf16_avx2(y, x, w, rows, width, depth, n0, n1);
            else if (dtype == 2) f16_avx2(y, x, w, rows, width, depth, n0, n1);
            else f32_avx2(y, x, w, rows, width, depth, n0, n1);
        }
    }
    return 0;
}
