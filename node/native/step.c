/* A step through all layers of a member in one call.
 *
 * Threads share each phase's work and meet at a barrier behind it: five a layer while every sequence has one row; one more
 * where sequences have several (all keys are stored before any query looks), and two more from SHARED_ROWS on, below which
 * every thread norms all rows for itself. A mixture of experts takes one more above SHARED_ROWS: rows are routed as they
 * are normed, and then gathered by expert. Whatever is split is split by the numbers of the model and of the step, never of
 * the threads, and summed in one order: a row's numbers depend neither on other rows nor on threads.
 */
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

#include "kernels.h"

/* Up to so many rows are normed by every thread for itself. */
enum { SHARED_ROWS = 4 };
/* Outputs of experts' down products that are computed at a time where a step has more than WIDE_ROWS rows: an expert's
 * operands are then read less often. */
enum { WIDE_ROWS = 64, WIDE_COLUMNS = 4 * CHUNK };
/* Queries that share the keys which one task packs. */
enum { TASK_QUERIES = 96 };

/* One decoder layer. Norms and biases are float32 (absent: NULL). cache, in the model's dtype: [2 × kv heads, slots,
 * head_dim], keys before values. window: 0 for full attention. gate_up_bias: the gate's, then up's. mixture: NULL for a dense
 * layer; else it stands for gate, up and down. */
typedef struct {
    const float *input_norm, *mlp_norm, *q_norm, *k_norm;
    const float *qkv_bias, *output_bias, *gate_up_bias, *down_bias;
    lp_matrix qkv, output, gate, up, down;
    void *cache;
    int64_t window;
    const lp_mixture *mixture;
} lp_layer;

/* dtype: of the cache. */
typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate, slots, block_tokens;
    float eps, scale;
    int32_t dtype, level;
} lp_model;

/* The step. Rows of a sequence follow each other: sequence s has rows [sequence_row[s], sequence_row[s + 1]), and their
 * positions do too. position, slot: of each row. blocks: block ids of all sequences, those of s from
 * blocks[sequence_block[s]]. cosine, sine: [rows, head_dim], the sine negative in its first half. */
typedef struct {
    int64_t rows, sequences, longest;
    const int64_t *position, *slot, *blocks, *sequence_row, *sequence_block;
    const float *cosine, *sine;
} lp_step;

/* Rows [row, row + rows) of one sequence and one KV head, over parts [part, part_stop) of its tokens. parts: of how many
 * tasks one row's sums are merged; those have their own place in `partial`, at `index` of a run that begins at `whole`. */
typedef struct {
    int64_t row, rows, sequence, head, part, part_stop, parts, whole, index;
} task;

typedef struct {
    char *normed, *mixed, *gated;           /* operands of all rows; gated, with experts: of all entries */
    char *gathered;                         /* of all entries */
    int32_t *chosen;                        /* [rows, top_k] */
    float *shares;
    float *qkv, *partial;                   /* partial: [group × (head_dim + 2)] of each task whose sums are merged */
    atomic_int *finished;                   /* [rows × kv heads] */
    task *tasks;
    char *threads;
    /* of one thread, from `threads` + number × thread_bytes */
    size_t own_operands, own_row, own_results, own_sums, own_scores, own_attention;
    size_t own_router, own_logits, own_candidates, own_chosen, own_shares, own_gathered;
    size_t own_next, own_entries, own_groups, thread_bytes;
    size_t bytes;
    int64_t task_count, partial_count;
} arena;

typedef struct { atomic_int arrived, turn; } barrier_t;

/* Threads that compute meet here a hundred times a step: a futex each time would cost more than the work between. Who
 * waits long yields, for on shared cores the others may be waiting for this very core. */
static void meet(barrier_t *barrier, int threads) {
    if (threads == 1) return;
    const int turn = atomic_load_explicit(&barrier->turn, memory_order_acquire);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->turn, turn + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&barrier->turn, memory_order_acquire) == turn; spins++) {
        if (spins < 2000) _mm_pause();
        else sched_yield();
    }
}

static int by_panels(const lp_model *model) { return model->dtype == BFLOAT16 && model->level >= LEVEL_PAIRS; }

/* The tasks of attention, into `tasks` if it is not NULL. Returns how many; counts places in `partial`. */
static int64_t list_tasks(const lp_model *model, const lp_step *step, task *tasks, int64_t *partial_count) {
    const int64_t group = model->heads / model->kv_heads, most = greatest(1, TASK_QUERIES / group);
    int64_t count = 0, partial = 0;
    for (int64_t s = 0; s < step->sequences; s++) {
        const int64_t begin = step->sequence_row[s], end = step->sequence_row[s + 1];
        const int64_t at_once = !by_panels(model) ? 1 : most;
        for (int64_t row = begin; row < end; row += at_once) {
            const int64_t rows = least(at_once, end - row);
            const int64_t parts = (step->position[row] + rows + PART_TOKENS - 1) / PART_TOKENS;
            const int64_t split = by_panels(model) && end - begin == 1 ? parts : 1;
            for (int64_t head = 0; head < model->kv_heads; head++, partial += split > 1 ? split : 0)
                for (int64_t i = 0; i < split; i++, count++)
                    if (tasks)
                        tasks[count] = (task){row, rows, s, head, split > 1 ? i : 0, split > 1 ? i + 1 : parts,
                                              split, partial, partial + i};
        }
    }
    *partial_count = partial;
    return count;
}

static size_t place(size_t *at, size_t bytes) {
    const size_t begin = *at;
    *at += (bytes + 63) / 64 * 64;
    return begin;
}

/* Lays out the scratch memory. base may be NULL: then only sizes are right. */
static int lay_out(arena *a, char *base, const lp_layer *layers, const lp_model *model, const lp_step *step,
                   int64_t threads) {
    const size_t rows = (size_t)step->rows, filled = (size_t)round_up(step->rows, TILE_ROWS);
    const size_t group = (size_t)(model->heads / model->kv_heads), dim = (size_t)model->head_dim;
    const size_t queries = (size_t)greatest(TASK_QUERIES, (ptrdiff_t)group);
    size_t normed = 0, mixed = 0, gated = 0, at = 0, own = 0;
    size_t router = 0, experts = 0, top_k = 0;
    for (int64_t index = 0; index < model->layers; index++) {
        const lp_layer *layer = layers + index;
        const lp_mixture *mixture = layer->mixture;
        const lp_matrix *all[6] = {&layer->qkv, mixture ? mixture->gate : &layer->gate, mixture ? mixture->up : &layer->up,
                                   &layer->output, mixture ? mixture->down : &layer->down, mixture ? &mixture->router : NULL};
        size_t *const most[6] = {&normed, &normed, &normed, &mixed, &gated, &router};
        for (int i = 0; i < 6 && all[i]; i++) {
            const product *by = product_of(all[i]->kind, model->level);
            if (!by) return -1;
            const size_t bytes = by->operand_bytes(all[i]->depth);
            *most[i] = bytes > *most[i] ? bytes : *most[i];
        }
        if (mixture) {
            experts = (size_t)greatest((ptrdiff_t)experts, mixture->count);
            top_k = (size_t)greatest((ptrdiff_t)top_k, mixture->top_k);
        }
    }
    /* A group of entries may begin at any row, and is read to the end of a tile. */
    const size_t alone = rows <= SHARED_ROWS, entries = rows * top_k, held = experts ? entries + TILE_ROWS : 0;
    const size_t columns = experts && rows > WIDE_ROWS ? WIDE_COLUMNS : 2 * CHUNK;
    a->task_count = list_tasks(model, step, NULL, &a->partial_count);
    a->normed = base + place(&at, (filled + (experts ? TILE_ROWS : 0)) * normed);
    a->mixed = base + place(&at, filled * mixed);
    a->gated = base + place(&at, (held > filled ? held : filled) * gated);
    a->gathered = base + place(&at, alone ? 0 : held * normed);
    a->chosen = (int32_t *)(base + place(&at, sizeof(int32_t) * entries));
    a->shares = (float *)(base + place(&at, sizeof(float) * entries));
    a->qkv = (float *)(base + place(&at, sizeof(float) * rows * (size_t)(model->heads + 2 * model->kv_heads) * dim));
    a->partial = (float *)(base + place(&at, sizeof(float) * (size_t)a->partial_count * group * (dim + 2)));
    a->finished = (atomic_int *)(base + place(&at, sizeof(atomic_int) * rows * (size_t)model->kv_heads));
    a->tasks = (task *)(base + place(&at, sizeof(task) * (size_t)a->task_count));
    a->own_operands = place(&own, (experts ? 2 : 1) * TILE_ROWS * normed);
    a->own_row = place(&own, sizeof(float) * (size_t)greatest(model->hidden, model->head_dim));
    a->own_results = place(&own, sizeof(float) * (size_t)least(step->rows, ROW_BLOCK) * columns);
    a->own_sums = place(&own, sizeof(float) * 2 * queries * (dim + 2));
    a->own_scores = place(&own, by_panels(model) ? 0 : sizeof(float) * group * (size_t)step->longest);
    a->own_attention = place(&own, by_panels(model) ? attention_scratch((ptrdiff_t)queries, (ptrdiff_t)dim) : 0);
    a->own_router = place(&own, TILE_ROWS * router);
    a->own_logits = place(&own, sizeof(float) * SHARED_ROWS * experts);
    a->own_candidates = place(&own, route_scratch((int64_t)experts));
    a->own_next = place(&own, sizeof(int32_t) * experts);
    a->own_entries = place(&own, sizeof(int32_t) * entries);
    a->own_groups = place(&own, sizeof(expert_group) * (experts + entries / ROW_BLOCK));
    a->own_chosen = place(&own, alone ? sizeof(int32_t) * entries : 0);
    a->own_shares = place(&own, alone ? sizeof(float) * entries : 0);
    a->own_gathered = place(&own, alone ? held * normed : 0);
    a->thread_bytes = own;
    a->threads = base + place(&at, own * (size_t)threads);
    a->bytes = at;
    return 0;
}

/* Bytes that lp_layers needs as scratch, or -1 for a weight that the level does not multiply. */
API int64_t lp_scratch(const lp_layer *layers, const lp_model *model, const lp_step *step, int64_t threads) {
    arena a;
    return lay_out(&a, NULL, layers, model, step, threads) ? -1 : (int64_t)a.bytes;
}

AVX2 static void store_row(void *cache, int64_t at, const float *values, int dim, int dtype) {
    if (dtype == FLOAT32) {
        memcpy((float *)cache + at, values, sizeof(float) * dim);
        return;
    }
    uint16_t *out = (uint16_t *)cache + at;
    if (dtype == BFLOAT16)
        for (int d = 0; d < dim; d++) out[d] = narrow_bf16(values[d]);
    else
        for (int d = 0; d < dim; d++) out[d] = _cvtss_sh(values[d], 0);
}

/* What all threads of a step share. */
typedef struct {
    float *x;
    const lp_layer *layers;
    const lp_model *model;
    const lp_step *step;
    arena a;
    barrier_t barrier;
    atomic_int next[MOST_LAYERS][5];
} shared;

/* One thread's view of it. */
typedef struct {
    shared *all;
    int threads, me;
    char *own;
} worker;

INLINE float *own_floats(const worker *w, size_t at) { return (float *)(w->own + at); }

/* Take the next of `count` pieces of work. */
static int take(atomic_int *next, int64_t count, int64_t *index) {
    *index = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
    return *index < count;
}

/* The norm of all rows as operands of `by`: by every thread for itself if rows are few, else shared and met for. */
static const char *norm_rows(const worker *w, const float *weight, const product *by) {
    const lp_model *model = w->all->model;
    const int64_t rows = w->all->step->rows, hidden = model->hidden;
    const size_t bytes = by->operand_bytes(hidden);
    const int alone = rows <= SHARED_ROWS;
    char *operands = alone ? w->own + w->all->a.own_operands : w->all->a.normed;
    float *row = own_floats(w, w->all->a.own_row);
    for (int64_t m = alone ? 0 : w->me; m < rows; m += alone ? 1 : w->threads) {
        norm_of(model->level)(row, w->all->x + m * hidden, weight, hidden, model->eps);
        by->prepare(operands + m * bytes, row, 0, hidden, hidden);
    }
    if (!alone) meet(&w->all->barrier, w->threads);
    return operands;
}

INLINE void add_bias(float *row, const float *bias, ptrdiff_t count) {
    if (bias)
        for (ptrdiff_t n = 0; n < count; n++) row[n] += bias[n];
}

/* A piece of a product: rows [m, m + rows) by outputs [n0, n1). */
typedef struct { int64_t m, rows, n0, n1; } piece;

static int take_piece(const worker *w, atomic_int *next, int64_t width, piece *p) {
    const int64_t chunks = (width + CHUNK - 1) / CHUNK, rows = w->all->step->rows;
    int64_t index;
    if (!take(next, chunks * ((rows + ROW_BLOCK - 1) / ROW_BLOCK), &index)) return 0;
    p->m = index / chunks * ROW_BLOCK;
    p->rows = least(ROW_BLOCK, rows - p->m);
    p->n0 = index % chunks * CHUNK;
    p->n1 = least(p->n0 + CHUNK, width);
    return 1;
}

static void project_qkv(const worker *w, const lp_layer *layer, const char *operands, const product *by, atomic_int *next) {
    const ptrdiff_t packed = layer->qkv.width;
    const size_t bytes = by->operand_bytes(layer->qkv.depth);
    piece p;
    while (take_piece(w, next, packed, &p)) {
        float *y = w->all->a.qkv + p.m * packed + p.n0;
        by->multiply(y, packed, operands + p.m * bytes, &layer->qkv, p.rows, p.n0, p.n1);
        for (int64_t r = 0; r < p.rows; r++)
            add_bias(y + r * packed, layer->qkv_bias ? layer->qkv_bias + p.n0 : NULL, p.n1 - p.n0);
    }
}

/* x += operands · matrixᵀ + bias */
AVX2 static void project_back(const worker *w, const lp_matrix *matrix, const float *bias,
                              const char *operands, const product *by, atomic_int *next) {
    const ptrdiff_t hidden = w->all->model->hidden;
    const size_t bytes = by->operand_bytes(matrix->depth);
    float *results = own_floats(w, w->all->a.own_results);
    piece p;
    while (take_piece(w, next, hidden, &p)) {
        by->multiply(results, CHUNK, operands + p.m * bytes, matrix, p.rows, p.n0, p.n1);
        for (int64_t r = 0; r < p.rows; r++) {
            float *x = w->all->x + (p.m + r) * hidden + p.n0, *row = results + r * CHUNK;
            add_bias(row, bias ? bias + p.n0 : NULL, p.n1 - p.n0);
            for (int64_t n = 0; n < p.n1 - p.n0; n++) x[n] += row[n];
        }
    }
}

/* silu(gate) × up of some rows and of outputs [n0, n1), as operands of the product that follows, from `to` on. bias: the
 * gate's, then up's; or NULL. */
static void gate_rows(const worker *w, const lp_matrix *gate, const lp_matrix *up, const float *bias, const char *from,
                      int64_t rows, int64_t n0, int64_t n1, const product *by_down, char *to) {
    const int level = w->all->model->level;
    const ptrdiff_t inner = gate->width;
    const size_t bytes_down = by_down->operand_bytes(inner);
    float *results = own_floats(w, w->all->a.own_results);
    product_of(gate->kind, level)->multiply(results, 2 * CHUNK, from, gate, rows, n0, n1);
    product_of(up->kind, level)->multiply(results + CHUNK, 2 * CHUNK, from, up, rows, n0, n1);
    for (int64_t r = 0; r < rows; r++) {
        float *row = results + r * 2 * CHUNK, *row_up = row + CHUNK;
        add_bias(row, bias ? bias + n0 : NULL, n1 - n0);
        add_bias(row_up, bias ? bias + inner + n0 : NULL, n1 - n0);
        gate_of(level)(row, row, row_up, n1 - n0);
        by_down->prepare(to + r * bytes_down, row, n0, n1, inner);
    }
}

static void project_gate_up(const worker *w, const lp_layer *layer, const char *operands, const product *by,
                            const product *by_down, atomic_int *next) {
    const size_t bytes = by->operand_bytes(layer->gate.depth), bytes_down = by_down->operand_bytes(layer->gate.width);
    piece p;
    while (take_piece(w, next, layer->gate.width, &p))
        gate_rows(w, &layer->gate, &layer->up, layer->gate_up_bias, operands + p.m * bytes, p.rows, p.n0, p.n1, by_down,
                  w->all->a.gated + p.m * bytes_down);
}

/* What a thread knows of a layer's experts in a step. chosen, shares: [rows, top_k]; entries and groups: kernels.h. */
typedef struct {
    const lp_mixture *mixture;
    const char *operands; /* of the rows, for gates and ups */
    char *gathered;       /* of the entries, where a group's rows do not follow each other */
    int32_t *chosen, *entries;
    float *shares;
    expert_group *groups;
    int64_t group_count;
    size_t bytes; /* of an operand row */
} routing;

static int64_t row_of(const routing *r, int64_t entry) { return r->entries[entry] / r->mixture->top_k; }

static int rows_follow(const routing *r, const expert_group *g) {
    return row_of(r, g->first + g->count - 1) - row_of(r, g->first) == g->count - 1;
}

/* Norm all rows and choose their experts; then operands are brought together by expert. By every thread for itself if rows
 * are few, else shared and met for. */
static routing route(const worker *w, const lp_layer *layer) {
    const lp_model *model = w->all->model;
    const arena *a = &w->all->a;
    const lp_mixture *mixture = layer->mixture;
    const product *by = product_of(mixture->gate->kind, model->level);
    const product *by_router = product_of(mixture->router.kind, model->level);
    const int64_t rows = w->all->step->rows, hidden = model->hidden, top_k = mixture->top_k;
    const int alone = rows <= SHARED_ROWS;
    const size_t bytes = by->operand_bytes(hidden), router_bytes = by_router->operand_bytes(hidden);
    char *operands = alone ? w->own + a->own_operands : a->normed, *aside = w->own + a->own_router;
    float *row = own_floats(w, a->own_row), *logits = own_floats(w, a->own_logits);
    routing r = {mixture, operands, alone ? w->own + a->own_gathered : a->gathered,
                 alone ? (int32_t *)(w->own + a->own_chosen) : a->chosen, (int32_t *)(w->own + a->own_entries),
                 alone ? own_floats(w, a->own_shares) : a->shares, (expert_group *)(w->own + a->own_groups), 0, bytes};
    const int64_t step = alone ? SHARED_ROWS : SHARED_ROWS * w->threads;
    for (int64_t m = alone ? 0 : SHARED_ROWS * w->me; m < rows; m += step) {
        const int64_t some = least(SHARED_ROWS, rows - m);
        for (int64_t i = 0; i < some; i++) {
            norm_of(model->level)(row, w->all->x + (m + i) * hidden, layer->mlp_norm, hidden, model->eps);
            by->prepare(operands + (m + i) * bytes, row, 0, hidden, hidden);
            by_router->prepare(aside + i * router_bytes, row, 0, hidden, hidden);
        }
        by_router->multiply(logits, mixture->count, aside, &mixture->router, some, 0, mixture->count);
        for (int64_t i = 0; i < some; i++)
            route_row(mixture, logits + i * mixture->count, r.chosen + (m + i) * top_k, r.shares + (m + i) * top_k,
                      w->own + a->own_candidates);
    }
    if (!alone) meet(&w->all->barrier, w->threads);
    r.group_count = group_rows(mixture, r.chosen, rows, (int32_t *)(w->own + a->own_next), r.entries, r.groups);
    for (int64_t i = alone ? 0 : w->me; i < r.group_count; i += alone ? 1 : w->threads) {
        const expert_group *g = r.groups + i;
        for (int64_t entry = g->first; !rows_follow(&r, g) && entry < g->first + g->count; entry++)
            memcpy(r.gathered + entry * bytes, operands + row_of(&r, entry) * bytes, bytes);
    }
    if (!alone) meet(&w->all->barrier, w->threads);
    return r;
}

static void project_experts_gate_up(const worker *w, const routing *r, atomic_int *next) {
    const product *by_down = product_of(r->mixture->down->kind, w->all->model->level);
    const int64_t inner = r->mixture->gate->width, chunks = (inner + CHUNK - 1) / CHUNK;
    const size_t bytes_down = by_down->operand_bytes(inner);
    int64_t index;
    while (take(next, r->group_count * chunks, &index)) {
        const expert_group *g = r->groups + index / chunks;
        const char *from = rows_follow(r, g) ? r->operands + row_of(r, g->first) * r->bytes
                                             : r->gathered + g->first * r->bytes;
        const int64_t n = index % chunks * CHUNK;
        gate_rows(w, r->mixture->gate + g->expert, r->mixture->up + g->expert, NULL, from, g->count, n,
                  least(n + CHUNK, inner), by_down, w->all->a.gated + g->first * bytes_down);
    }
}

/* x += share × down product, for all experts of a row in the order of their numbers: some outputs are one thread's work for
 * all experts, so that nothing is added in another order. */
static void project_experts_back(const worker *w, const routing *r, atomic_int *next) {
    const int level = w->all->model->level;
    const int64_t hidden = w->all->model->hidden, columns = w->all->step->rows > WIDE_ROWS ? WIDE_COLUMNS : CHUNK;
    const size_t bytes = product_of(r->mixture->down->kind, level)->operand_bytes(r->mixture->down->depth);
    float *results = own_floats(w, w->all->a.own_results);
    int64_t index;
    while (take(next, (hidden + columns - 1) / columns, &index)) {
        const int64_t n0 = index * columns, n1 = least(n0 + columns, hidden);
        for (const expert_group *g = r->groups; g < r->groups + r->group_count; g++) {
            const lp_matrix *down = r->mixture->down + g->expert;
            product_of(down->kind, level)->multiply(results, columns, w->all->a.gated + g->first * bytes, down, g->count, n0, n1);
            for (int64_t i = 0; i < g->count; i++) {
                const float share = r->shares[r->entries[g->first + i]], *row = results + i * columns;
                float *x = w->all->x + row_of(r, g->first + i) * hidden + n0;
                for (int64_t n = 0; n < n1 - n0; n++) x[n] += share * row[n];
            }
        }
    }
}

/* Norm (if the model norms heads) and rotate one head; out may be the head. */
AVX2 static void turn_head(const worker *w, float *out, const float *head, const float *norm, int64_t m) {
    const int dim = (int)w->all->model->head_dim, half = dim / 2;
    const float *cosine = w->all->step->cosine + m * dim, *sine = w->all->step->sine + m * dim;
    float *from = own_floats(w, w->all->a.own_row);
    if (norm) norm_of(w->all->model->level)(from, head, norm, dim, w->all->model->eps);
    else memcpy(from, head, sizeof(float) * dim);
    for (int d = 0; d < half; d++) {
        out[d] = from[d] * cosine[d] + from[d + half] * sine[d];
        out[d + half] = from[d + half] * cosine[d + half] + from[d] * sine[d + half];
    }
}

/* Rotate the key of one row and KV head, and store key and value. */
static void store_head(const worker *w, const lp_layer *layer, int64_t m, int64_t head) {
    const lp_model *model = w->all->model;
    const int64_t dim = model->head_dim, heads = model->heads, kv_heads = model->kv_heads;
    const int64_t slot = w->all->step->slot[m] * dim, plane = model->slots * dim;
    float *row = w->all->a.qkv + m * (heads + 2 * kv_heads) * dim, *key = row + (heads + head) * dim;
    turn_head(w, key, key, layer->k_norm, m);
    store_row(layer->cache, head * plane + slot, key, (int)dim, model->dtype);
    store_row(layer->cache, (kv_heads + head) * plane + slot, row + (heads + kv_heads + head) * dim, (int)dim, model->dtype);
}

static void attend_by_floats(const worker *w, const lp_layer *layer, const task *t, const char *keys, const char *values,
                             float *out) {
    const lp_model *model = w->all->model;
    const lp_step *step = w->all->step;
    const int64_t dim = model->head_dim, group = model->heads / model->kv_heads, stop = step->position[t->row] + 1;
    const int64_t first = layer->window && stop > layer->window ? stop - layer->window : 0;
    float *queries = w->all->a.qkv + (t->row * (model->heads + 2 * model->kv_heads) + t->head * group) * dim;
    for (int64_t g = 0; g < group; g++) turn_head(w, queries + g * dim, queries + g * dim, layer->q_norm, t->row);
    attend_of(model->dtype, model->level)(out, queries, keys, values, step->blocks + step->sequence_block[t->sequence],
                                          first, stop, model->block_tokens, (int)group, (int)dim, model->scale,
                                          own_floats(w, w->all->a.own_scores));
}

/* Returns 0 if other parts of the same rows are still missing; else `out` has the merged and divided sums. */
AVX2 static int attend_by_panels(const worker *w, const lp_layer *layer, const task *t, const char *keys,
                                 const char *values, float *out) {
    const lp_model *model = w->all->model;
    const lp_step *step = w->all->step;
    const int64_t dim = model->head_dim, group = model->heads / model->kv_heads, filled = round_up(dim, CHUNK);
    const int64_t queries = t->rows * group, width = (model->heads + 2 * model->kv_heads) * dim;
    void *scratch = w->own + w->all->a.own_attention;
    uint16_t *narrow = attention_queries(scratch);
    for (int64_t q = 0; q < queries; q++, narrow += filled) {
        const int64_t m = t->row + q / group;
        turn_head(w, out, w->all->a.qkv + m * width + (t->head * group + q % group) * dim, layer->q_norm, m);
        for (int64_t d = 0; d < dim; d++) narrow[d] = narrow_bf16(out[d]);
        for (int64_t d = dim; d < filled; d++) narrow[d] = 0;
    }
    const attention a = {model->level == LEVEL_TILES ? panel_by_tiles : panel_by_pairs, keys, values,
                         step->blocks + step->sequence_block[t->sequence], model->block_tokens, layer->window,
                         step->position[t->row], t->rows, group, dim, model->scale};
    float *most = out + queries * dim, *total = most + queries;
    if (t->parts > 1) {
        const int64_t size = group * (dim + 2);
        float *own = w->all->a.partial + t->index * size;
        attend_part(&a, t->part, own, own + queries * dim, own + queries * dim + queries, scratch);
        atomic_int *finished = w->all->a.finished + t->row * model->kv_heads + t->head;
        if (atomic_fetch_add_explicit(finished, 1, memory_order_acq_rel) != t->parts - 1) return 0;
        atomic_store_explicit(finished, 0, memory_order_relaxed);
        const float *from = w->all->a.partial + t->whole * size;
        memcpy(out, from, sizeof(float) * size);
        for (int64_t i = 1; i < t->parts; i++) {
            from += size;
            merge_parts(out, most, total, from, from + queries * dim, from + queries * dim + queries, queries, dim);
        }
    } else {
        float *next = total + queries, *next_most = next + queries * dim;
        attend_part(&a, t->part, out, most, total, scratch);
        for (int64_t part = t->part + 1; part < t->part_stop; part++) {
            attend_part(&a, part, next, next_most, next_most + queries, scratch);
            merge_parts(out, most, total, next, next_most, next_most + queries, queries, dim);
        }
    }
    finish_parts(out, total, queries, dim);
    return 1;
}

/* Attention of a layer, into the operands of the output product. stored: keys and values are in the cache already. */
static void attend_rows(const worker *w, const lp_layer *layer, const product *by, int stored, atomic_int *next) {
    const lp_model *model = w->all->model;
    const int64_t dim = model->head_dim, group = model->heads / model->kv_heads, depth = model->heads * dim;
    const size_t plane = (size_t)model->slots * dim * (model->dtype == FLOAT32 ? 4 : 2), bytes = by->operand_bytes(depth);
    float *out = own_floats(w, w->all->a.own_sums);
    int64_t index;
    while (take(next, w->all->a.task_count, &index)) {
        const task *t = w->all->a.tasks + index;
        const char *keys = (const char *)layer->cache + t->head * plane, *values = keys + model->kv_heads * plane;
        /* A row's own key is in its last part, so no other part waits for it. */
        if (!stored && t->index == t->whole + t->parts - 1) store_head(w, layer, t->row, t->head);
        if (!by_panels(model)) attend_by_floats(w, layer, t, keys, values, out);
        else if (!attend_by_panels(w, layer, t, keys, values, out)) continue;
        for (int64_t r = 0; r < t->rows; r++)
            by->prepare(w->all->a.mixed + (t->row + r) * bytes, out + r * group * dim, t->head * group * dim,
                        (t->head + 1) * group * dim, depth);
    }
}

static void run_layer(const worker *w, int64_t index) {
    shared *all = w->all;
    const lp_model *model = all->model;
    const lp_layer *layer = all->layers + index;
    const product *qkv = product_of(layer->qkv.kind, model->level), *output = product_of(layer->output.kind, model->level);
    const int several = all->step->sequences != all->step->rows;
    atomic_int *next = all->next[index];

    project_qkv(w, layer, norm_rows(w, layer->input_norm, qkv), qkv, &next[0]);
    meet(&all->barrier, w->threads);
    if (several) {
        for (int64_t i = w->me; i < all->step->rows * model->kv_heads; i += w->threads)
            store_head(w, layer, i / model->kv_heads, i % model->kv_heads);
        meet(&all->barrier, w->threads);
    }
    attend_rows(w, layer, output, several, &next[1]);
    meet(&all->barrier, w->threads);
    project_back(w, &layer->output, layer->output_bias, all->a.mixed, output, &next[2]);
    meet(&all->barrier, w->threads);
    if (layer->mixture) {
        const routing experts = route(w, layer);
        project_experts_gate_up(w, &experts, &next[3]);
        meet(&all->barrier, w->threads);
        project_experts_back(w, &experts, &next[4]);
    } else {
        const product *gate = product_of(layer->gate.kind, model->level), *down = product_of(layer->down.kind, model->level);
        project_gate_up(w, layer, norm_rows(w, layer->mlp_norm, gate), gate, down, &next[3]);
        meet(&all->barrier, w->threads);
        project_back(w, &layer->down, layer->down_bias, all->a.gated, down, &next[4]);
    }
    meet(&all->barrier, w->threads);
}

/* Run a step through all layers: x float32 [rows, hidden] is replaced by the result, and keys and values are stored.
 * head_dim: a multiple of 16; heads a multiple of kv_heads, at most 32 times as many; at most 256 layers. gate and up of a
 * layer are of kinds with the same operands. scratch: lp_scratch bytes, at an address that is a multiple of 64. Returns 0,
 * or -1 for sizes or kinds that it does not take. */
API int lp_layers(float *x, const lp_layer *layers, const lp_model *model, const lp_step *step, char *scratch,
                  int64_t most_threads) {
    if (model->dtype < 0 || model->dtype > 2 || model->level < LEVEL_AVX2 || model->level > LEVEL_TILES ||
        model->head_dim % 16 || model->heads % model->kv_heads || model->heads / model->kv_heads > MOST_GROUP ||
        model->layers > MOST_LAYERS)
        return -1;
    shared all = {.x = x, .layers = layers, .model = model, .step = step};
    if (lay_out(&all.a, scratch, layers, model, step, most_threads)) return -1;
    int64_t partial;
    list_tasks(model, step, all.a.tasks, &partial);
    memset((void *)all.a.finished, 0, sizeof(atomic_int) * (size_t)(step->rows * model->kv_heads));

#pragma omp parallel num_threads((int)most_threads)
    {
        const int me = omp_get_thread_num();
        const worker w = {&all, omp_get_num_threads(), me, all.a.threads + (size_t)me * all.a.thread_bytes};
        if (model->level == LEVEL_TILES) tiles_enter();
        for (int64_t index = 0; index < model->layers; index++) run_layer(&w, index);
        if (model->level == LEVEL_TILES) tiles_leave();
    }
    return 0;
}
