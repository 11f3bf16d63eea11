/* Which product serves a kind of weight at a level, and the calls for one matrix.
 *
 * Built without linking OpenMP: the GOMP_* symbols resolve to the runtime that torch has loaded (see kernels.py), so that
 * one process has one pool of threads. Nothing here allocates, and nothing is read or written outside the given extents.
 */
#include <omp.h>

#include "kernels.h"

/* Panels without tiles: 1 if they are widened to float32, 0 if dot products multiply them; decided once a process. */
static int widens = 0;

/* choice 0 or 1: for tests and measurements, before anything is multiplied. Negative: nothing changes. Returns what holds. */
API int lp_widens_panels(int choice) {
    if (choice >= 0) widens = choice != 0;
    return widens;
}

const product *product_of(int64_t kind, int level) {
    if (level < LEVEL_AVX2 || level > LEVEL_TILES) return NULL;
    switch (kind) {
    case FLOAT32:
    case BFLOAT16:
    case FLOAT16: return &float_products[level > LEVEL_AVX2][kind];
    case KIND_PANELS: return level < LEVEL_PAIRS ? NULL : level == LEVEL_TILES ? &tiles_product : widens ? &wide_product : &pairs_product;
    case KIND_Q8:
    case KIND_Q8_BY_16:
    case KIND_Q4:
    case KIND_STACK: return quantised_product(kind, level);
    default: return NULL;
    }
}

/* The best level of this CPU. 0: it has neither AVX2 with FMA and F16C nor more; 2: AVX2; 3: AVX-512; 4: and bfloat16 dot
 * products; 5: and AMX tiles, which this process may use and which compute what they should. */
API int lp_instruction_set(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return LEVEL_AVX2;
    if (!__builtin_cpu_supports("avx512bf16")) return LEVEL_AVX512;
    widens = pairs_are_slow();
    return tiles_available() ? LEVEL_TILES : LEVEL_PAIRS;
}

/* Bytes of a matrix in panels. */
API int64_t lp_panel_bytes(int64_t width, int64_t depth) { return round_up(width, CHUNK) * round_up(depth, 32) * 2; }

/* source: bfloat16 [width, depth], row-major → panels (kernels.h). Where both sizes are multiples of 32 a panel has the
 * bytes of its 32 rows, and panels may be source. scratch: 32 × depth values for each of `threads`. */
API void lp_pack_panels(uint16_t *panels, const uint16_t *source, int64_t width, int64_t depth, uint16_t *scratch,
                        int64_t threads) {
    const ptrdiff_t filled = round_up(depth, 32), count = round_up(width, CHUNK) / CHUNK;
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (ptrdiff_t index = 0; index < count; index++) {
        uint16_t *panel = panels + index * filled * CHUNK, *rows = scratch + omp_get_thread_num() * CHUNK * depth;
        const ptrdiff_t outputs = least(CHUNK, width - index * CHUNK);
        memcpy(rows, source + index * CHUNK * depth, sizeof(uint16_t) * (size_t)(outputs * depth));
        for (ptrdiff_t k = 0; k < filled; k++)
            for (ptrdiff_t n = 0; n < CHUNK; n++)
                panel[k / 2 * 2 * CHUNK + 2 * n + k % 2] = n < outputs && k < depth ? rows[n * depth + k] : 0;
    }
}

/* Bytes of scratch for lp_linear. */
API int64_t lp_linear_scratch(const lp_matrix *w, int64_t rows, int level) {
    const product *by = product_of(w->kind, level);
    return by ? (int64_t)(by->operand_bytes(w->depth) * (size_t)round_up(rows, TILE_ROWS)) : 0;
}

/* y [rows, width] = x · wᵀ; x [rows, depth], both row-major and contiguous. level: what lp_instruction_set returned, or
 * less. Returns 0, or -1 for a kind that the level does not multiply. */
API int lp_linear(float *y, const float *x, const lp_matrix *w, int64_t rows, void *scratch, int level) {
    const product *by = product_of(w->kind, level);
    if (!by) return -1;
    const size_t bytes = by->operand_bytes(w->depth);
    const ptrdiff_t chunks = (w->width + CHUNK - 1) / CHUNK;
    const ptrdiff_t blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
#pragma omp parallel
    {
        if (by->enter) by->enter();
#pragma omp for schedule(static)
        for (ptrdiff_t m = 0; m < rows; m++)
            by->prepare((char *)scratch + m * bytes, x + m * w->depth, 0, w->depth, w->depth);
#pragma omp for schedule(dynamic, 1) nowait
        for (ptrdiff_t task = 0; task < chunks * blocks; task++) {
            const ptrdiff_t n = task % chunks * CHUNK, m = task / chunks * ROW_BLOCK;
            by->multiply(y + m * w->width + n, w->width, (char *)scratch + m * bytes, w, least(ROW_BLOCK, rows - m), n,
                         least(n + CHUNK, w->width));
        }
        if (by->leave) by->leave();
    }
    return 0;
}
