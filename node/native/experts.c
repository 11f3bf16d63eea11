/* The routing of a mixture of experts: which experts a row takes and with what shares, and which rows an expert takes.
 *
 * As transformers' Qwen3MoeTopKRouter: the softmax over all experts, then the top k of it. Of experts with equal
 * probabilities those are chosen that torch.topk chooses on a CPU. It promises no order; what it has is that of the C++
 * library's partial_sort (k up to a 64th of the experts) and nth_element (more), as GNU's library does them: a heap of the
 * best so far, and partitions around a median of three. A row's experts depend on its scores alone.
 */
#include <math.h>

#include "kernels.h"

typedef struct { float share; int32_t expert; } candidate;

/* NaN before everything, as in torch.topk: the result then shows it. */
INLINE int before(candidate a, candidate b) { return (isnan(a.share) && !isnan(b.share)) || a.share > b.share; }

INLINE void swap(candidate *a, candidate *b) {
    const candidate kept = *a;
    *a = *b;
    *b = kept;
}

/* Put `value` into the heap at `hole`, from where it sinks to the bottom and rises again. The last in order is on top. */
static void sift(candidate *heap, int64_t hole, int64_t length, candidate value) {
    const int64_t top = hole;
    int64_t child = hole;
    while (child < (length - 1) / 2) {
        child = 2 * (child + 1);
        if (before(heap[child], heap[child - 1])) child--;
        heap[hole] = heap[child];
        hole = child;
    }
    if (length % 2 == 0 && child == (length - 2) / 2) {
        child = 2 * (child + 1);
        heap[hole] = heap[child - 1];
        hole = child - 1;
    }
    for (; hole > top && before(heap[(hole - 1) / 2], value); hole = (hole - 1) / 2) heap[hole] = heap[(hole - 1) / 2];
    heap[hole] = value;
}

/* The first `wanted` of `count` in order come to the front. */
static void select_by_heap(candidate *all, int64_t wanted, int64_t count) {
    for (int64_t parent = wanted / 2; parent-- > 0;) sift(all, parent, wanted, all[parent]);
    for (int64_t i = wanted; i < count; i++)
        if (before(all[i], all[0])) {
            const candidate better = all[i];
            all[i] = all[0];
            sift(all, 0, wanted, better);
        }
}

static void median_to(candidate *to, candidate *a, candidate *b, candidate *c) {
    if (before(*a, *b)) swap(to, before(*b, *c) ? b : before(*a, *c) ? c : a);
    else swap(to, before(*a, *c) ? a : before(*b, *c) ? c : b);
}

/* Around all[0], which is neither the first nor the last in order of the others. Returns where the second part begins. */
static int64_t partition(candidate *all, int64_t count) {
    int64_t low = 1, high = count;
    for (;; low++) {
        while (before(all[low], all[0])) low++;
        do high--;
        while (before(all[0], all[high]));
        if (low >= high) return low;
        swap(all + low, all + high);
    }
}

static void select_by_partition(candidate *all, int64_t wanted, int64_t count) {
    int64_t first = 0, stop = count, turns = 0;
    for (int64_t n = count; n > 1; n /= 2) turns += 2;
    while (stop - first > 3) {
        candidate *own = all + first;
        if (turns-- == 0) {
            select_by_heap(own, wanted - first, stop - first);
            return;
        }
        median_to(own, own + 1, own + (stop - first) / 2, all + stop - 1);
        const int64_t cut = first + partition(own, stop - first);
        if (cut < wanted) first = cut;
        else stop = cut;
    }
    for (int64_t i = first + 1; i < stop; i++)
        for (int64_t j = i; j > first && before(all[j], all[j - 1]); j--) swap(all + j, all + j - 1);
}

size_t route_scratch(int64_t experts) { return sizeof(candidate) * (size_t)experts; }

/* For one target, so that the bits are the same at all levels. */
AVX2 void route_row(const lp_mixture *mixture, float *scores, int32_t *chosen, float *shares, void *scratch) {
    const int64_t count = mixture->count, top_k = mixture->top_k;
    candidate *all = scratch;
    float most = -INFINITY, total = 0;
    for (int64_t e = 0; e < count; e++) most = scores[e] > most ? scores[e] : most;
    for (int64_t e = 0; e < count; e++) scores[e] = exponential(scores[e] - most);
    for (int64_t e = 0; e < count; e++) total += scores[e];
    for (int64_t e = 0; e < count; e++) all[e] = (candidate){scores[e] / total, (int32_t)e};
    (top_k * 64 <= count ? select_by_heap : select_by_partition)(all, top_k, count);
    total = mixture->normalise ? 0.0f : 1.0f;
    for (int64_t i = 0; mixture->normalise && i < top_k; i++) total += all[i].share;
    for (int64_t i = 0; i < top_k; i++) {
        chosen[i] = all[i].expert;
        shares[i] = all[i].share / total;
    }
}

int64_t group_rows(const lp_mixture *mixture, const int32_t *chosen, int64_t rows, int32_t *next, int32_t *entries,
                   expert_group *groups) {
    const int64_t count = rows * mixture->top_k;
    int64_t made = 0;
    memset(next, 0, sizeof(int32_t) * (size_t)mixture->count);
    for (int64_t i = 0; i < count; i++) next[chosen[i]]++;
    for (int64_t e = 0, first = 0; e < mixture->count; e++) {
        const int64_t stop = first + next[e];
        next[e] = (int32_t)first;
        for (; first < stop; first += groups[made++].count)
            groups[made] = (expert_group){e, first, least(ROW_BLOCK, stop - first)};
    }
    for (int64_t i = 0; i < count; i++) entries[next[chosen[i]]++] = (int32_t)i;
    return made;
}
