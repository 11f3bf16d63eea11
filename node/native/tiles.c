/* The panel product by AMX tiles (Intel 64 and IA-32 Software Developer's Manual: TDPBF16PS, TILELOADD, LDTILECFG).
 *
 * A panel is two B tiles wide: 16 rows of 64 bytes (a row: one pair of the depth for 16 outputs), 128 bytes apart. An A
 * tile is 16 rows of activations by 32 of the depth. Up to 2 × 2 tiles of sums are in registers. As with dot products, an
 * output's sum has one order for every number of rows: always whole tiles; rows that are not there are computed from what
 * lies behind the operands and thrown away.
 *
 * LP_EMULATE_TILES: the same code on arrays that follow the manual, for tests on processors without AMX.
 */
#include "kernels.h"

#if defined(LP_EMULATE_TILES) || \
    (defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11))

/* Sums 0 to 3 ([A][B]), A 4 and 5, B 6 and 7: all of 16 rows by 64 bytes. */
#ifdef LP_EMULATE_TILES
#define TILES static
static _Thread_local struct { _Alignas(64) char bytes[16][64]; } tiles[8];
#define ZERO_TILE(t) memset(&tiles[t], 0, sizeof tiles[t])
#define LOAD_TILE(t, from, stride) \
    for (int i = 0; i < 16; i++) memcpy(tiles[t].bytes[i], (const char *)(from) + i * (stride), 64)
#define STORE_TILE(t, to, stride) \
    for (int i = 0; i < 16; i++) memcpy((char *)(to) + i * (stride), tiles[t].bytes[i], 64)
#define MULTIPLY_TILES(sums, a, b) emulate_tdpbf16ps(sums, a, b)
#define CONFIGURE(config) (void)(config)
#define RELEASE() (void)0
#define WRITTEN(operand) (void)(operand)
static void emulate_tdpbf16ps(int sums, int a, int b) {
    for (int m = 0; m < 16; m++) {
        float total[16] = {0}, *sum = (float *)tiles[sums].bytes[m];
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int half = 0; half < 2; half++)
                    total[n] += widen_bf16(((uint16_t *)tiles[a].bytes[m])[2 * k + half]) *
                                widen_bf16(((uint16_t *)tiles[b].bytes[k])[2 * n + half]);
        for (int n = 0; n < 16; n++) sum[n] += total[n];
    }
}
#else
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TILES __attribute__((target("amx-tile,amx-bf16"))) static
#define ZERO_TILE(t) _tile_zero(t)
#define LOAD_TILE(t, from, stride) _tile_loadd(t, from, stride)
#define STORE_TILE(t, to, stride) _tile_stored(t, to, stride)
#define MULTIPLY_TILES(sums, a, b) _tile_dpbf16ps(sums, a, b)
#define CONFIGURE(config) _tile_loadconfig(config)
#define RELEASE() _tile_release()
/* GCC 12's intrinsics do not tell the compiler which memory the instructions read (of the 64 bytes of a configuration:
 * eight), so what was stored before might be stored later or never. */
#define WRITTEN(operand) __asm__ volatile("" : : "r"(operand) : "memory")
#endif

/* Up to 32 rows by 32 columns of whole tiles; stride in floats. two: of rows. */
TILES inline __attribute__((always_inline)) void block(const int two, float *y, ptrdiff_t stride, const uint16_t *x,
                                                       ptrdiff_t x_stride, const uint16_t *panel, ptrdiff_t pairs,
                                                       int add) {
    WRITTEN(y);
    WRITTEN(x);
    WRITTEN(panel);
    if (add) {
        LOAD_TILE(0, y, stride * 4);
        LOAD_TILE(1, y + 16, stride * 4);
        if (two) {
            LOAD_TILE(2, y + 16 * stride, stride * 4);
            LOAD_TILE(3, y + 16 * stride + 16, stride * 4);
        }
    } else {
        ZERO_TILE(0);
        ZERO_TILE(1);
        if (two) {
            ZERO_TILE(2);
            ZERO_TILE(3);
        }
    }
    for (ptrdiff_t k = 0; k < pairs; k += 16) {
        LOAD_TILE(6, panel + k * 64, 128);
        LOAD_TILE(7, panel + k * 64 + 32, 128);
        LOAD_TILE(4, x + 2 * k, x_stride * 2);
        MULTIPLY_TILES(0, 4, 6);
        MULTIPLY_TILES(1, 4, 7);
        if (two) {
            LOAD_TILE(5, x + 16 * x_stride + 2 * k, x_stride * 2);
            MULTIPLY_TILES(2, 5, 6);
            MULTIPLY_TILES(3, 5, 7);
        }
    }
    STORE_TILE(0, y, stride * 4);
    STORE_TILE(1, y + 16, stride * 4);
    if (two) {
        STORE_TILE(2, y + 16 * stride, stride * 4);
        STORE_TILE(3, y + 16 * stride + 16, stride * 4);
    }
}

TILES void panel_of_tiles(float *y, ptrdiff_t stride, const uint16_t *x, ptrdiff_t x_stride, const uint16_t *panel,
                          ptrdiff_t rows, ptrdiff_t pairs, int columns, int add) {
    _Alignas(64) float aside[16 * CHUNK]; /* for the rows and columns that y does not have */
    for (ptrdiff_t m = 0; m < rows;) {
        if (columns == CHUNK && rows - m >= 32) {
            block(1, y + m * stride, stride, x + m * x_stride, x_stride, panel, pairs, add);
            m += 32;
        } else if (columns == CHUNK && rows - m >= 16) {
            block(0, y + m * stride, stride, x + m * x_stride, x_stride, panel, pairs, add);
            m += 16;
        } else {
            const ptrdiff_t some = least(16, rows - m);
            if (add)
                for (ptrdiff_t r = 0; r < 16; r++)
                    for (int n = 0; n < CHUNK; n++)
                        aside[r * CHUNK + n] = r < some && n < columns ? y[(m + r) * stride + n] : 0;
            block(0, aside, CHUNK, x + m * x_stride, x_stride, panel, pairs, add);
            for (ptrdiff_t r = 0; r < some; r++) memcpy(y + (m + r) * stride, aside + r * CHUNK, sizeof(float) * columns);
            m += some;
        }
    }
}

void panel_by_tiles(float *y, ptrdiff_t stride, const uint16_t *x, ptrdiff_t x_stride, const uint16_t *panel,
                    ptrdiff_t rows, ptrdiff_t pairs, int columns, int add) {
    panel_of_tiles(y, stride, x, x_stride, panel, rows, pairs, columns, add);
}

TILES void configure(void) {
    _Alignas(64) struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = 16;
        config.row_bytes[t] = 64;
    }
    WRITTEN(&config);
    CONFIGURE(&config);
}

TILES void release(void) { RELEASE(); }

void tiles_enter(void) { configure(); }
void tiles_leave(void) { release(); }

/* The processor has them, the kernel saves their state (Linux 5.16 and later, asked by each process). */
static int permitted(void) {
#ifdef LP_EMULATE_TILES
    return 1;
#else
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 22)) || !(d & (1u << 24))) return 0; /* BF16, TILE */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & (3u << 17)) != (3u << 17)) return 0;
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#endif
}

/* Small whole numbers, whose sums are exact in any order. */
static int agree(void) {
    enum { ROWS = 51, DEPTH = 96 };
    static uint16_t x[64 * DEPTH], panel[DEPTH * CHUNK];
    static float y[ROWS * CHUNK];
    const uint16_t numbers[4] = {0x0000, 0x3f80, 0x4000, 0xc040}; /* 0, 1, 2, -3 */
    for (int i = 0; i < 64 * DEPTH; i++) x[i] = numbers[(i * 7 + i / 5) & 3];
    for (int i = 0; i < DEPTH * CHUNK; i++) panel[i] = numbers[(i * 5 + i / 3) & 3];
    configure();
    panel_by_tiles(y, CHUNK, x, DEPTH, panel, ROWS, 32, CHUNK, 0);
    panel_by_tiles(y, CHUNK, x + 64, DEPTH, panel + 32 * 64, ROWS, 16, CHUNK, 1);
    release();
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < CHUNK; n++) {
            float expected = 0;
            for (int k = 0; k < DEPTH; k++)
                expected += widen_bf16(x[m * DEPTH + k]) * widen_bf16(panel[k / 2 * 64 + 2 * n + k % 2]);
            if (y[m * CHUNK + n] != expected) return 0;
        }
    return 1;
}

int tiles_available(void) { return permitted() && agree(); }

#else

void panel_by_tiles(float *y, ptrdiff_t stride, const uint16_t *x, ptrdiff_t x_stride, const uint16_t *panel,
                    ptrdiff_t rows, ptrdiff_t pairs, int columns, int add) {
    panel_by_pairs(y, stride, x, x_stride, panel, rows, pairs, columns, add);
}
void tiles_enter(void) {}
void tiles_leave(void) {}
int tiles_available(void) { return 0; }

#endif
