/* Backward: every lane goes over the steps of its segments at once, from the last to the first. */

enum { LAM = TRIAL, GY = ERROR, AGAIN = ASIDE }; /* beside STATE and END; then stages, their states, and cotangents */

/* The steps that lanes make again: which lanes do, with which outputs, and those of the step before, where the cotangent
   that they put on f between both joins this one. `whole` are those whose interpolant has a part. */
typedef struct {
    Problem each[W];
    double t0[W], t1[W], h[W];
    i64 steps[W], whole[W], outputs, inside; /* of any lane */
    Span own[W], before[W];
} Sweep;

/* Start with a segment: of a row whose steps behind it are done, or which ends there. */
static void open_back(Problem *p, Rows *r, i64 w) {
    Lane *l = r->lanes + w;
    const i64 g = region(r, w) + l->segments - 1, row = l->row = r->of[g], n = p->n;
    T *lam = r->lam + row * n;
    enter(p, r, row);
    l->open = 1;
    l->first = outputs_at_start(p);
    l->step = r->steps[g];
    l->before = r->befores[g];
    read_row(p->pull, r, row, w, 1);
    if (r->ends[g]) {
        l->follows = l->calls = 0;
        l->outputs = r->states[row].outputs;
        for (i64 i = l->outputs; i < p->n_ts; i++) add(n, 1, p->ys + i * n, lam); /* those behind the end repeat it */
    }
    scatter(n, w, lam, kept_at(p, r, LAM));
}

/* The segment is done: its row's cotangents go home. */
static void close_back(const Problem *p, Back *b, Rows *r, i64 w) {
    Lane *l = r->lanes + w;
    const i64 g = region(r, w) + l->segments - 1, n = p->n;
    T *lam = r->lam + l->row * n;
    gather(n, w, kept_at(p, r, LAM), lam);
    for (i64 i = 0; i < b->totals; i++) {
        const i64 count = b->counts[i] / W, step = r->own[i] == 2 ? W : 1;
        T *from = r->sums[i] + (step == W ? w : w * count), *to = r->totals[i] + l->row * count;
        for (i64 j = 0; r->own[i] && j < count; j++) {
            to[j] += from[j * step];
            from[j * step] = 0;
        }
    }
    for (i64 i = 0; i < n; i++) kept_at(p, r, LAM)[i * W + w] = 0;
    l->open = 0;
    l->segments--;
    if (r->before[g]) return;
    for (i64 i = 0; i < l->first; i++) add(n, 1, p->ys + i * n, lam);
    if (l->calls > r->most_calls) r->most_calls = l->calls;
}

/* The times of the step of a lane that is next, and its outputs. */
static void enter_step(const Problem *p, Back *b, const Rows *r, const Chunk *c, Sweep *s, i64 w) {
    const Lane *l = r->lanes + w;
    const i64 g = region(r, w) + l->segments - 1, step = l->step - 1, n = p->n, earlier = r->before[g] + step;
    const i64 slot = r->slots[g] + step, linear = p->method->f1 >= 0 && p->method->f1 == p->method->all - 1;
    const double *times = c->times + slot, t = step ? times[-1] : l->before;
    b->first = l->first;
    s->own[w] = span_of(p, b, times[0], times[1], l->outputs, earlier == 0);
    if (linear && t == t && !(p->n_jumps && jumps_at(p, times[0])))
        s->before[w] = span_of(p, b, t, times[0], s->own[w].first, earlier == 1);
    s->t0[w] = times[0];
    s->t1[w] = times[1];
    s->h[w] = times[1] - times[0];
    s->whole[w] = s->own[w].inside && !(linear && l->follows);
    s->steps[w] = 1;
    s->outputs |= s->own[w].first < s->own[w].last;
    s->inside |= s->own[w].inside || s->before[w].inside;
    const char *soon = (const char *)(c->Y + (slot > AHEAD ? slot - AHEAD : 0) * n);
    for (i64 i = 0; i < (i64)(n * sizeof(T)); i += 64) __builtin_prefetch(soon + i);
    __builtin_prefetch(c->times + (slot > AHEAD ? slot - AHEAD : 0));
    scatter(n, w, c->Y + slot * n, kept_at(p, r, STATE));
    scatter(n, w, c->Y + (slot + 1) * n, kept_at(p, r, END));
    for (i64 j = 0; j < c->rows; j++) scatter(n, w, c->K + (slot * c->rows + j) * n, kept_at(p, r, FIRST_STAGE + j));
}

/* Have a lane know its next step; 0 if it has none. */
static i64 enter_back(Problem *p, Back *b, Rows *r, const Chunk *c, Sweep *s, i64 w) {
    Lane *l = r->lanes + w;
    s->steps[w] = s->whole[w] = 0;
    memset(s->own + w, 0, sizeof(Span));
    memset(s->before + w, 0, sizeof(Span));
    s->t0[w] = s->t1[w] = r->t[w];
    s->h[w] = 0;
    while (l->open || l->segments) {
        if (!l->open) {
            open_back(p, r, w);
            s->each[w] = *p;
        }
        if (l->step) {
            enter_step(s->each + w, b, r, c, s, w);
            return 1;
        }
        close_back(s->each + w, b, r, w);
    }
    return 0;
}

/* How far the ends of steps, made again, are from those recorded; see `compare`. */
static void compare_lanes(const Problem *p, Back *b, const Sweep *s, const T *again, const T *y1) {
    double off[W] = {0}, size[W] = {0};
    for (i64 i = 0; i < p->n * W; i += W) EACH_LANE {
            const double x = y1[i + w], d = again[i + w] - x;
            off[w] += d * d;
            size[w] += x * x;
        }
    EACH_LANE if (s->steps[w] && is_finite(size[w]) && !(off[w] <= b->allowed * b->allowed * size[w])) {
        const double beyond = sqrt(off[w]) - b->allowed * sqrt(size[w]);
        if (!(beyond <= b->drift)) b->drift = beyond;
    }
}

/* The stages from those kept, or again, and the states `at` that they were evaluated at. A lane without use for those of
   the interpolant may not have them, and gets its own state. */
static void again_lanes(const Problem *p, Back *b, Rows *r, const Chunk *c, const Sweep *s, i64 used, T *const *k, T *at) {
    const Method *m = p->method;
    const i64 n = p->n, own = m->stages - m->fsal;
    T *y = kept_at(p, r, STATE), *y1 = kept_at(p, r, END), *end = kept_at(p, r, AGAIN);
    if (!c->rows) {
        stages_lanes(p, s->t0, s->t1, y, 0, k, 0, own, at, n * W);
        end_of_lanes(p, s->t0, s->t1, y, k, end);
        compare_lanes(p, b, s, end, y1);
        EACH_LANE r->lanes[w].calls += !s->steps[w] ? 0 : s->whole[w] ? m->all : own;
        if (m->f1 >= own && m->f1 < used) memcpy(at + m->f1 * n * W, end, n * W * sizeof(T));
        stages_lanes(p, s->t0, s->t1, y, end, k, own, used, at, n * W);
        return;
    }
    for (i64 i = 1; i < used; i++) {
        T *state = at + i * n * W;
        if (i == m->f1) memcpy(state, y1, n * W * sizeof(T));
        else shift_lanes(n, i, m->a + i * m->all, s->h, y, k, state);
        for (i64 j = 0; i >= own && j < n * W; j += W)
            EACH_LANE state[j + w] = s->whole[w] ? state[j + w] : y[j + w];
    }
}

/* The product of g with df/dy, and sums of those with everything else. */
static void product_lanes(const Problem *p, Back *b, const Rows *r, const T *t, const T *y, const T *g, T *gy) {
    Graph *f = p->pull;
    f->in[0] = t;
    f->in[1] = y;
    f->in[2] = g;
    f->out[0] = gy;
    f->code(f->in, f->out, f->sizes, f->numbers, f->workspace);
    for (i64 i = 0; i < b->totals; i++) add(b->counts[i], 1, f->out[b->lead + i], r->sums[i]);
}

/* add what the outputs inside of a lane's step put on its stage j. */
static void pull_lane(const Problem *p, const Span *s, i64 j, T *lanes, i64 w) {
    if (!s->inside) return;
    T *one = p->work;
    memset(one, 0, p->n * sizeof(T));
    pull_output(p, s, j, one);
    for (i64 i = 0; i < p->n; i++) lanes[i * W + w] += one[i];
}

/* Add the cotangents of the outputs of a lane's step that are its end, or of the others, to that of the state. */
static void add_outputs(const Problem *p, const Sweep *s, int ends, T *lam, i64 w) {
    for (i64 i = s->own[w].first; i < s->own[w].last; i++)
        for (i64 j = 0; ends_step(p, i, s->t1[w]) == ends && j < p->n; j++) lam[j * W + w] += p->ys[i * p->n + j];
}

/* The cotangents of the state at the end of the step, and of its stages, before those are pulled back. */
static void begin_lanes(const Problem *p, Rows *r, const Sweep *s, i64 used, T *const *g) {
    const Method *m = p->method;
    T *lam = kept_at(p, r, LAM);
    if (s->outputs) EACH_LANE add_outputs(s->each + w, s, 1, lam, w);
    for (i64 j = 0; j < used; j++) {
        const LANES v = scaled(s->h, j < m->stages ? m->b[j] : 0);
        for (i64 i = 0; i < p->n * PARTS_OF; i += PARTS_OF)
            EACH_PART parts_at(g[j])[i + q] = v.parts[q] * parts_of(lam)[i + q];
        if (s->inside) EACH_LANE if (s->whole[w] || j < m->stages - m->fsal) pull_lane(s->each + w, s->own + w, j, g[j], w);
    }
    if (s->inside) EACH_LANE {
        pull_lane(s->each + w, s->before + w, m->f1, g[0], w);
        if (s->own[w].inside) add_outputs(s->each + w, s, 0, lam, w);
    }
}

/* A step of all lanes. */
static void replay_lanes(Problem *p, Back *b, Rows *r, const Chunk *c, const Sweep *s) {
    const Method *m = p->method;
    const i64 n = p->n, own = m->stages - m->fsal;
    T *k[STAGES], *g[STAGES], t[W], *y = kept_at(p, r, STATE), *lam = kept_at(p, r, LAM), *gy = kept_at(p, r, GY);
    T *at = kept_at(p, r, FIRST_STAGE + m->all);
    i64 used = own;
    EACH_LANE if (s->whole[w]) used = m->all;
    for (i64 j = 0; j < m->all; j++) {
        k[j] = kept_at(p, r, FIRST_STAGE + j);
        g[j] = kept_at(p, r, FIRST_STAGE + 2 * m->all + j);
    }
    again_lanes(p, b, r, c, s, used, k, at);
    begin_lanes(p, r, s, used, g);
    for (i64 i = used - 1; i >= 0; i--) {
        times_of(p, i, s->t0, s->t1, t);
        product_lanes(p, b, r, t, i ? at + i * n * W : y, g[i], gy);
        for (i64 j = 0; j < n * PARTS_OF; j++) parts_at(lam)[j] += parts_of(gy)[j];
        for (i64 j = 0; j < i; j++) {
            const double a = m->a[i * m->all + j];
            if (a != 0) add_lanes(n, scaled(s->h, a), gy, g[j]);
        }
    }
}

/* Until the chunk's first steps are done, or the slice of time is spent. */
API i64 backward_rows(Problem *p, Back *b, Rows *r, Chunk *c, double slice) {
    const double until = seconds() + slice;
    Sweep s;
    EACH_LANE {
        if (r->lanes[w].open) enter(p, r, r->lanes[w].row);
        s.each[w] = *p;
    }
    for (;;) {
        i64 steps = s.outputs = s.inside = 0;
        EACH_LANE steps += enter_back(p, b, r, c, &s, w);
        if (!steps) return REACHED;
        replay_lanes(p, b, r, c, &s);
        EACH_LANE if (s.steps[w]) {
            Lane *l = r->lanes + w;
            l->outputs = s.own[w].first;
            l->follows = !(p->n_jumps && jumps_at(p, s.t0[w]));
            l->step--;
            r->t[w] = (T)s.t0[w];
        }
        if (seconds() > until) return PAUSED;
    }
}
