/* What the files of the native kernels share: weights, products, and small helpers.
 *
 * products.c   which way a kind of weight is multiplied at an instruction set; the calls for one matrix
 * floats.c     float32 arithmetic: row-major weights and caches of any storage dtype, widened in registers
 * pairs.c      bfloat16 dot products on panels (AVX512-BF16); panels widened to float32 where those are slow
 * tiles.c      the same panels by AMX tiles
 * quantised.c  weights of 8 and 4 bits by activations of 8
 * attention.c  attention over a bfloat16 cache by the panel products
 * experts.c    which experts a row takes, and which rows an expert
 * step.c       a step through all layers of a member
 *
 * How to add a kind of weight (say, int8 with scales): give it a number in the kinds below and in model/matrix.py; write
 * the three functions of `product` for each level that serves it, in a file of its own; return them in `product_of`
 * (products.c); and let model/matrix.py make an lp_matrix of it. Nothing in step.c knows a kind. A row's numbers must not
 * depend on how many rows there are: sum in one order.
 */
#ifndef LP_KERNELS_H
#define LP_KERNELS_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))
#define PAIRS __attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c")))

/* Storage dtypes, which are also the kinds of row-major weights: [width, depth], multiplied in float32. */
enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
/* Kinds beside those. PANELS: bfloat16 in panels of 32 outputs, [width / 32][depth / 2][32][2], the width and the depth
 * filled up with zeros to multiples of 32; multiplied as bfloat16 by bfloat16 and summed in float32. */
enum { KIND_PANELS = 3 };
/* Quantised kinds (quantised.c), which have one form of operand: whole numbers of 8 bits in groups of 32. A stack is
 * matrices of these kinds, one under the other. */
enum { KIND_Q8 = 4, KIND_Q8_BY_16 = 5, KIND_Q4 = 6, KIND_STACK = 7 };
enum { LEVEL_AVX2 = 2, LEVEL_AVX512 = 3, LEVEL_PAIRS = 4, LEVEL_TILES = 5 };
/* Outputs are multiplied in chunks of so many, and a panel is as wide; operands come and are filled up in such runs. */
enum { CHUNK = 32 };
/* Rows of operands and of results to which a buffer is filled up, so that tiles may read and write whole ones. */
enum { TILE_ROWS = 16 };
/* Rows that are multiplied by a chunk of outputs at a time: their operands then stay in the second-level cache. */
enum { ROW_BLOCK = 192 };
enum { MOST_GROUP = 32, MOST_LAYERS = 256 };

/* A weight at rest: y = x · wᵀ for x [rows, depth] and y [rows, width]. */
typedef struct {
    int64_t kind, width, depth;
    const void *data, *scales; /* scales: for kinds that have them */
} lp_matrix;

/* A mixture of experts: each row takes `top_k` of `count`. normalise: a row's shares are made to sum to one. gate, up and
 * down: [count]; all gates and ups are of kinds with the same operands, and so are all downs. */
typedef struct {
    int64_t count, top_k, normalise;
    lp_matrix router;
    const lp_matrix *gate, *up, *down;
} lp_mixture;

/* How one kind is multiplied at one level.
 *   operand_bytes  of one row of activations as `multiply` wants it, a multiple of 64
 *   prepare        columns [k0, k1) of a float32 row into an operand row; x points to column k0. k0 is a multiple of 16
 *                  (of CHUNK wherever group × head_dim is one), and k1 too or the depth. What fills up the row is written
 *                  by whoever prepares its end.
 *   multiply       y[m · stride + n - n0] = row m · output n, for n in [n0, n1); n0 is a multiple of CHUNK. operands: one
 *                  row after another, in memory for a multiple of TILE_ROWS rows.
 *   enter, leave   called once by each thread before and after it multiplies; may be NULL */
typedef struct {
    size_t (*operand_bytes)(ptrdiff_t depth);
    void (*prepare)(void *operand, const float *x, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t depth);
    void (*multiply)(float *y, ptrdiff_t stride, const void *operands, const lp_matrix *w, ptrdiff_t rows, ptrdiff_t n0,
                     ptrdiff_t n1);
    void (*enter)(void), (*leave)(void);
} product;

/* NULL for a kind that this level does not multiply. */
const product *product_of(int64_t kind, int level);

/* The next three are made for AVX2 and AVX-512. */
typedef void gate_fn(float *out, const float *gate, const float *up, ptrdiff_t count);
typedef void norm_fn(float *out, const float *x, const float *weight, ptrdiff_t size, float eps);
/* One row's queries [group, dim] of one KV head over its cached tokens [first, stop); scores: [group, stop - first]. */
typedef void attend_fn(float *out, const float *q, const void *k_cache, const void *v_cache, const int64_t *blocks,
                       ptrdiff_t first, ptrdiff_t stop, ptrdiff_t block_tokens, int group, int dim, float scale,
                       float *scores);
gate_fn *gate_of(int level);
norm_fn *norm_of(int level);
attend_fn *attend_of(int dtype, int level);
extern const product float_products[2][3]; /* [AVX2, AVX-512][dtype] */

/* y[m · stride + n] (+)= row m · column n of one panel of bfloat16 pairs [depth][32][2], n < columns.
 * x: rows of bfloat16, x_stride apart; depth: in pairs, a multiple of 16. add: to what y holds. */
typedef void panel_fn(float *y, ptrdiff_t stride, const uint16_t *x, ptrdiff_t x_stride, const uint16_t *panel,
                      ptrdiff_t rows, ptrdiff_t pairs, int columns, int add);
panel_fn panel_by_pairs, panel_by_tiles;
void multiply_panels(panel_fn *panel, float *y, ptrdiff_t stride, const uint16_t *x, const lp_matrix *w, ptrdiff_t rows,
                     ptrdiff_t n0, ptrdiff_t n1);
const product *quantised_product(int64_t kind, int level);
extern const product pairs_product, wide_product, tiles_product;
/* Whether float32 arithmetic (wide_product) is the faster one for panels on this processor. */
int pairs_are_slow(void);
void tiles_enter(void);
void tiles_leave(void);
/* Whether this process may use tiles here, and they compute what they should. */
int tiles_available(void);

/* Attention over a bfloat16 cache (attention.c). One task is one KV head's share of some rows of one sequence, over the
 * parts [part, part_stop) of its tokens, PART_TOKENS each. */
enum { KEY_BLOCK = 64, PART_TOKENS = 256 };
typedef struct {
    panel_fn *panel;
    const void *keys, *values; /* of this KV head: [slots, dim] */
    const int64_t *blocks;     /* of this sequence */
    ptrdiff_t block_tokens, window, start; /* start: position of the first row */
    ptrdiff_t rows, group, dim;
    float scale;
} attention;
size_t attention_scratch(ptrdiff_t queries, ptrdiff_t dim);
uint16_t *attention_queries(void *scratch); /* where the queries go: [rows × group] rows of round_up(dim, 32) */
/* Sums of one part: out [rows × group, dim] not yet divided, and for each query its greatest score and total weight. */
void attend_part(const attention *a, ptrdiff_t part, float *out, float *most, float *total, void *scratch);
/* Add a later part's sums to those of the earlier ones. */
void merge_parts(float *out, float *most, float *total, const float *part_out, const float *part_most,
                 const float *part_total, ptrdiff_t queries, ptrdiff_t dim);
void finish_parts(float *out, const float *total, ptrdiff_t queries, ptrdiff_t dim);

/* Mixtures of experts (experts.c). Entries are (row, expert) pairs, by expert and then by row; a group is at most ROW_BLOCK
 * entries [first, first + count) of one expert. */
typedef struct { int64_t expert, first, count; } expert_group;
size_t route_scratch(int64_t experts);
/* scores: of one row, [count]; they are used up. chosen, shares: [top_k]. */
void route_row(const lp_mixture *mixture, float *scores, int32_t *chosen, float *shares, void *scratch);
/* chosen: [rows, top_k] → entries [rows × top_k], as indices of chosen. next: [count], scratch. Returns how many groups: at
 * most one an expert and one more for each ROW_BLOCK entries. */
int64_t group_rows(const lp_mixture *mixture, const int32_t *chosen, int64_t rows, int32_t *next, int32_t *entries,
                   expert_group *groups);

INLINE ptrdiff_t round_up(ptrdiff_t value, ptrdiff_t to) { return (value + to - 1) / to * to; }
INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t greatest(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

INLINE float widen_bf16(uint16_t value) {
    union { uint32_t bits; float number; } both = {(uint32_t)value << 16};
    return both.number;
}

/* Round to nearest, ties to even; a NaN stays one. */
INLINE uint16_t narrow_bf16(float value) {
    union { float number; uint32_t bits; } both = {value};
    const uint32_t rounded = (both.bits + 0x7fffu + ((both.bits >> 16) & 1)) >> 16;
    return (uint16_t)((both.bits & 0x7fffffffu) > 0x7f800000u ? (both.bits >> 16) | 0x40 : rounded);
}

/* e^x within two units in the last place, in a form that compilers vectorise (the polynomial is Cephes' expf). */
INLINE float exponential(float x) {
    x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    const float whole = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* rounds to an integer */
    const float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    union { int32_t bits; float number; } scale = {((int32_t)whole + 127) << 23};
    return power * scale.number;
}

#endif
