/* Rows: each is a solve of its own, in one of the lanes. */

/* Where the loops keep what lanes need between two steps: states, and stages behind them. */
static T *kept_at(const Problem *p, const Rows *r, i64 i) { return r->work + i * p->n * W; }
enum { STATE, END, TRIAL, ERROR, ASIDE, RTOL, ATOL, FIRST_STAGE };

/* Make the problem that of a row. */
static void enter(Problem *p, const Rows *r, i64 row) {
    p->ts = r->ts + row * p->n_ts;
    p->stops = r->stops + row * r->most_stops;
    p->n_stops = r->n_stops[row];
    p->sign = r->signs[row];
    p->ys = r->ys + row * p->n_ts * p->n;
    if (!p->tolerance) return;
    r->tolerance->rtol = r->rtol + row * p->n * r->tolerance->rtol_stride;
    r->tolerance->atol = r->atol + row * p->n * r->tolerance->atol_stride;
    r->pace->reach = r->reach[row];
    r->pace->fallback = r->fallback[row];
}

/* Give a lane what f reads of a row. */
static void read_row(const Graph *f, const Rows *r, i64 row, i64 lane, i64 further) {
    for (i64 i = 0; i < r->inputs; i++) {
        const i64 size = r->sizes[i], count = r->counts[i];
        const char *from = r->bases[i] + row * count * size;
        char *to = (char *)f->in[r->places[i] + further];
        if (!r->laid[i]) memcpy(to + lane * count * size, from, count * size);
        else
            for (i64 j = 0; j < count; j++) memcpy(to + (j * W + lane) * size, from + j * size, size);
    }
}

/* f of one lane, as code that functions for a single problem can call. */
typedef struct {
    const Problem *p;
    const Rows *r;
    i64 lane;
} Alone;

static void of_lane(const void *const *in, void *const *out, const i64 *sizes, const double *numbers, T *workspace) {
    const Alone *a = (const Alone *)workspace;
    const i64 n = a->p->n;
    T t[W], *at = kept_at(a->p, a->r, TRIAL), *k = kept_at(a->p, a->r, ASIDE);
    EACH_LANE t[w] = w == a->lane ? *(const T *)in[0] : a->r->t[w];
    memcpy(at, kept_at(a->p, a->r, STATE), n * W * sizeof(T));
    scatter(n, a->lane, in[1], at);
    evaluate_lanes(a->p->value, t, at, k);
    gather(n, a->lane, k, out[0]);
}

static i64 outputs_at_start(const Problem *p) {
    i64 count = 1;
    while (count < p->n_ts && p->ts[count] == p->ts[0]) count++;
    return count;
}

/* The first slot of a lane, and of its segments the first; and where its open segment starts. */
static i64 region(const Rows *r, i64 lane) { return lane * r->room; }
static i64 slot_of(const Rows *r, i64 lane) { return region(r, lane) + r->lanes[lane].used; }

#define AHEAD 4 /* steps of which memory is asked for: lanes read and write in as many places as there are of them */

/* Keep the state that a lane is at. */
static void keep_state(const Problem *p, const Rows *r, const Chunk *c, i64 lane) {
    const i64 slot = slot_of(r, lane) + r->lanes[lane].steps;
    c->times[slot] = r->states[r->lanes[lane].row].t;
    __builtin_prefetch(c->times + slot + AHEAD, 1);
    __builtin_prefetch(c->Y + (c->kept ? (slot + AHEAD) * p->n : 0), 1);
    if (c->kept) gather(p->n, lane, kept_at(p, r, STATE), c->Y + slot * p->n);
}

static void open_segment(const Problem *p, Rows *r, const Chunk *c, i64 lane) {
    Lane *l = r->lanes + lane;
    const i64 g = region(r, lane) + l->segments;
    l->steps = 0;
    l->open = 1;
    r->of[g] = l->row;
    r->slots[g] = slot_of(r, lane);
    r->before[g] = r->states[l->row].accepted;
    r->befores[g] = l->since;
    keep_state(p, r, c, lane);
}

/* One without a step is none, unless the row ends there. */
static void close_segment(Rows *r, const Chunk *c, i64 lane, i64 ends) {
    Lane *l = r->lanes + lane;
    const i64 g = region(r, lane) + l->segments;
    l->open = 0;
    if (!l->steps && !ends) return;
    if (l->steps) l->since = c->times[slot_of(r, lane) + l->steps - 1];
    r->steps[g] = l->steps;
    r->ends[g] = ends;
    l->used += l->steps + 1;
    l->segments++;
}

/* Look beside the end of a step that says nothing, and bound the next one; see torchaca.loops.rest. */
static void bound(const Problem *p, Rows *r, State *s, i64 row, const T *before, const T *y) {
    const i64 n = p->n;
    const Tolerance *tolerance = p->tolerance;
    T *v = r->directions + row * n, *f0 = p->work, *state = f0 + p->method->all * n, *w = state + n;
    if (!r->looks || s->t == p->ts[p->n_ts - 1]) return;
    for (i64 i = 0; i < n; i++) w[i] = y[i] - before[i];
    if (s->ratio > r->rounding && !(relative(tolerance, w, 1, before, y) <= r->still)) return;
    if (!s->known) {
        slope(p, s->t, y, f0);
        s->known = 1;
        s->calls++;
    }
    double floor = 0;
    for (i64 i = 0; i < n; i++) floor += (double)tolerance->atol[i * tolerance->atol_stride] * tolerance->atol[i * tolerance->atol_stride];
    const double root = sqrt(n), size = (sqrt(dot(n, y, y)) + sqrt(floor)) / root, beside = r->near * size + r->nearest;
    for (i64 i = 0; i < n; i++) state[i] = y[i] + (T)beside * v[i];
    slope(p, s->t, state, w);
    s->calls++;
    for (i64 i = 0; i < n; i++) w[i] -= f0[i];
    const double rise = sqrt(dot(n, w, w)), old = r->fading * r->steepness[row];
    const int seen = rise > 0 && is_finite(rise);
    if (seen) {
        for (i64 i = 0; i < n; i++) state[i] = v[i] / 2 + w[i] * (T)(root / rise);
        const double length = sqrt(dot(n, state, state));
        for (i64 i = 0; i < n; i++) v[i] = state[i] * (T)(root / at_least(length, FLAT));
    }
    const double steep = at_least(at_least(seen ? rise / (beside * root) : 0, old), FLAT);
    const double small = r->good * pow(r->total / at_least(r->spans[row] * steep, FLAT), 1.0 / p->method->order);
    r->steepness[row] = steep;
    s->dt = at_most(s->dt, at_least(at_most(small, r->theta) / steep, r->least[row]));
}
