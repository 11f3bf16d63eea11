/* Attention over a bfloat16 cache by the same panel products as the weights: queries and weights are bfloat16, scores and
 * sums float32.
 *
 * A query's numbers are the same whether it comes alone (decode) or among others of its sequence (a prefill chunk), and for
 * any number of threads: keys are taken in blocks of KEY_BLOCK at multiples of it, each part of PART_TOKENS has sums of its
 * own, and the parts are merged in order. What a query may not see has a weight of exactly zero.
 */
#include <math.h>

#include "kernels.h"

typedef struct {
    uint16_t *queries, *weights, *keys, *values;
    float *scores;
    size_t bytes;
} areas;

static areas lay_out(char *from, ptrdiff_t queries, ptrdiff_t dim) {
    const size_t rows = (size_t)round_up(queries, TILE_ROWS), filled = (size_t)round_up(dim, CHUNK);
    areas at;
    at.queries = (uint16_t *)from;
    at.weights = at.queries + rows * filled;
    at.keys = at.weights + rows * KEY_BLOCK;
    at.values = at.keys + filled * KEY_BLOCK;
    at.scores = (float *)(at.values + filled * KEY_BLOCK);
    at.bytes = (size_t)((char *)(at.scores + rows * KEY_BLOCK) - from);
    return at;
}

size_t attention_scratch(ptrdiff_t queries, ptrdiff_t dim) {
    const areas at = lay_out(NULL, queries, dim);
    return at.bytes;
}

uint16_t *attention_queries(void *scratch) { return scratch; }

/* 16 rows of 16 pairs (missing rows: NULL; `wanted` of the pairs) → 16 runs of 16 pairs, 64 values apart. */
PAIRS static void transpose(uint16_t *out, const uint16_t *const *rows, ptrdiff_t column, __mmask16 wanted) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = rows[i] ? _mm512_maskz_loadu_epi32(wanted, rows[i] + column) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int c = 0; c < 4; c++) { /* lane L of a[4j + c]: column 4L + c of rows 4j to 4j + 3 */
        const __m512i even = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), odd = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        const __m512i odd2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(out + 64 * c, _mm512_shuffle_i32x4(even, even2, 0x88));
        _mm512_storeu_si512(out + 64 * (4 + c), _mm512_shuffle_i32x4(odd, odd2, 0x88));
        _mm512_storeu_si512(out + 64 * (8 + c), _mm512_shuffle_i32x4(even, even2, 0xdd));
        _mm512_storeu_si512(out + 64 * (12 + c), _mm512_shuffle_i32x4(odd, odd2, 0xdd));
    }
}

/* Keys of `count` tokens (the first `skipped` left out) → panels of 32 tokens, depth the head's. */
PAIRS static void pack_keys(uint16_t *panels, const uint16_t *keys, const ptrdiff_t *slots, ptrdiff_t skipped,
                            ptrdiff_t count, ptrdiff_t dim) {
    const ptrdiff_t filled = round_up(dim, CHUNK);
    for (ptrdiff_t t = 0; t < round_up(count, CHUNK); t += 16) {
        const uint16_t *rows[16];
        for (ptrdiff_t i = 0; i < 16; i++)
            rows[i] = t + i >= skipped && t + i < count ? keys + slots[t + i] * dim : NULL;
        for (ptrdiff_t d = 0; d < filled; d += 32)
            transpose(panels + t / CHUNK * filled * CHUNK + d * CHUNK + t % CHUNK * 2, rows, d,
                      dim - d >= 32 ? 0xffff : 0x00ff);
    }
}

/* Values of the same tokens → panels of 32 of the head's dimensions, depth the tokens. */
PAIRS static void pack_values(uint16_t *panels, const uint16_t *values, const ptrdiff_t *slots, ptrdiff_t skipped,
                              ptrdiff_t count, ptrdiff_t dim) {
    static const uint16_t ORDER[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_loadu_si512(ORDER), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (ptrdiff_t t = 0; t < round_up(count, CHUNK); t += 2)
        for (ptrdiff_t d = 0; d < dim; d += 32) {
            const __mmask32 wanted = dim - d >= 32 ? 0xffffffffu : 0x0000ffffu;
            __m512i rows[2];
            for (int i = 0; i < 2; i++)
                rows[i] = t + i >= skipped && t + i < count
                              ? _mm512_maskz_loadu_epi16(wanted, values + slots[t + i] * dim + d)
                              : _mm512_setzero_si512();
            uint16_t *out = panels + d * KEY_BLOCK + t * CHUNK;
            _mm512_storeu_si512(out, _mm512_permutex2var_epi16(rows[0], low, rows[1]));
            _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(rows[0], high, rows[1]));
        }
}

/* As `exponential`, for 16. */
PAIRS INLINE __m512 exponentials(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fmadd_ps(whole, _mm512_set1_ps(2.12194440e-4f), rest);
    __m512 power = _mm512_set1_ps(1.9875691500e-4f);
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.3981999507e-3f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(8.3334519073e-3f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(4.1665795894e-2f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.6666665459e-1f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(5.0000001201e-1f));
    power = _mm512_fmadd_ps(power, _mm512_mul_ps(rest, rest), _mm512_add_ps(rest, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(power, whole);
}

/* One query's scores of a block → its weights; its sums so far are brought to the new greatest score. Sees [low, high). */
PAIRS static void weigh(uint16_t *weights, const float *scores, ptrdiff_t low, ptrdiff_t high, float scale, float *out,
                        float *most, float *total, ptrdiff_t dim) {
    if (low >= high) {
        memset(weights, 0, sizeof(uint16_t) * KEY_BLOCK);
        return;
    }
    const uint64_t seen = (high == 64 ? ~0ull : (1ull << high) - 1) & ~((1ull << low) - 1);
    __m512 all[4], greatest_of = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int v = 0; v < 4; v++) {
        all[v] = _mm512_mul_ps(_mm512_loadu_ps(scores + 16 * v), _mm512_set1_ps(scale));
        greatest_of = _mm512_mask_max_ps(greatest_of, (__mmask16)(seen >> (16 * v)), greatest_of, all[v]);
    }
    const float before = *most, now = _mm512_reduce_max_ps(greatest_of), after = now > before ? now : before;
    for (int v = 0; v < 4; v++) {
        const __m512 exact = exponentials(_mm512_sub_ps(all[v], _mm512_set1_ps(after)));
        const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_mov_ps((__mmask16)(seen >> (16 * v)), exact));
        _mm256_storeu_si256((__m256i *)(weights + 16 * v), narrow);
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)));
    }
    const float kept = before == -INFINITY ? 0.0f : exponential(before - after);
    *total = *total * kept + _mm512_reduce_add_ps(sum);
    *most = after;
    if (kept != 1.0f)
        for (ptrdiff_t d = 0; d < dim; d += 16)
            _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), _mm512_set1_ps(kept)));
}

void attend_part(const attention *a, ptrdiff_t part, float *out, float *most, float *total, void *scratch) {
    const ptrdiff_t group = a->group, dim = a->dim, queries = a->rows * group, filled = round_up(dim, CHUNK);
    const areas at = lay_out(scratch, queries, dim);
    const ptrdiff_t first = a->window ? greatest(0, a->start + 1 - a->window) : 0; /* what the first row sees */
    const ptrdiff_t stop = least((part + 1) * PART_TOKENS, a->start + a->rows);
    memset(out, 0, sizeof(float) * queries * dim);
    memset(total, 0, sizeof(float) * queries);
    for (ptrdiff_t q = 0; q < queries; q++) most[q] = -INFINITY;
    for (ptrdiff_t block = part * PART_TOKENS; block < stop; block += KEY_BLOCK) {
        if (block + KEY_BLOCK <= first) continue;
        const ptrdiff_t count = least(KEY_BLOCK, a->start + a->rows - block), skipped = greatest(0, first - block);
        ptrdiff_t slots[KEY_BLOCK];
        for (ptrdiff_t t = 0, index = block / a->block_tokens, inside = block % a->block_tokens; t < count; t++) {
            slots[t] = a->blocks[index] * a->block_tokens + inside;
            if (++inside == a->block_tokens) inside = 0, index++;
        }
        pack_keys(at.keys, a->keys, slots, skipped, count, dim);
        for (ptrdiff_t t = 0; t < count; t += CHUNK)
            a->panel(at.scores + t, KEY_BLOCK, at.queries, filled, at.keys + t * filled, queries, filled / 2, CHUNK, 0);
        for (ptrdiff_t q = 0; q < queries; q++) {
            const ptrdiff_t end = a->start + q / group + 1, begin = a->window ? greatest(0, end - a->window) : 0;
            weigh(at.weights + q * KEY_BLOCK, at.scores + q * KEY_BLOCK, greatest(0, begin - block),
                  least(KEY_BLOCK, end - block), a->scale, out + q * dim, most + q, total + q, dim);
        }
        pack_values(at.values, a->values, slots, skipped, count, dim);
        for (ptrdiff_t d = 0; d < dim; d += CHUNK)
            a->panel(out + d, dim, at.weights, KEY_BLOCK, at.values + d * KEY_BLOCK, queries, round_up(count, CHUNK) / 2,
                     (int)least(CHUNK, dim - d), 1);
    }
}

AVX2 void merge_parts(float *out, float *most, float *total, const float *part_out, const float *part_most,
                      const float *part_total, ptrdiff_t queries, ptrdiff_t dim) {
    for (ptrdiff_t q = 0; q < queries; q++, out += dim, part_out += dim) {
        if (part_most[q] == -INFINITY) continue;
        if (most[q] == -INFINITY) {
            memcpy(out, part_out, sizeof(float) * dim);
            most[q] = part_most[q];
            total[q] = part_total[q];
            continue;
        }
        const float after = most[q] > part_most[q] ? most[q] : part_most[q];
        const float ours = exponential(most[q] - after), theirs = exponential(part_most[q] - after);
        for (ptrdiff_t d = 0; d < dim; d++) out[d] = out[d] * ours + part_out[d] * theirs;
        total[q] = total[q] * ours + part_total[q] * theirs;
        most[q] = after;
    }
}

AVX2 void finish_parts(float *out, const float *total, ptrdiff_t queries, ptrdiff_t dim) {
    for (ptrdiff_t q = 0; q < queries; q++)
        for (ptrdiff_t d = 0; d < dim; d++) out[q * dim + d] /= total[q];
}
