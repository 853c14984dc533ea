/* ACA's backward pass over the steps of a chunk: each again by itself, from the last to the first.

   An output inside a step depends on f1 = f(t1, y1), which is the first stage of the step that follows as well. Where
   the interpolant is linear in it, its cotangent is handed to that step, which comes first. */

/* One step: its times, the outputs [first, last) that belong to it, and how many of them are inside of it. */
typedef struct {
    double t0, t1, h;
    i64 first, last, inside;
} Span;

static Span span_of(const Problem *p, const Back *b, double t0, double t1, i64 last, int start) {
    Span s = {t0, t1, t1 - t0, last, last, 0};
    while (s.first > b->first && (start || p->sign * p->ts[s.first - 1] > p->sign * t0))
        s.inside += !ends_step(p, --s.first, t1);
    return s;
}

/* out += the cotangent that the outputs inside of a step put on its stage j. */
static void pull_output(const Problem *p, const Span *s, i64 j, T *out) {
    double w[STAGES];
    for (i64 i = s->first; i < s->last; i++) {
        if (ends_step(p, i, s->t1)) continue;
        weights_at(p->method, (p->ts[i] - s->t0) / s->h, w, 0);
        if (w[j] != 0) add(p->n, (T)(s->h * w[j]), p->ys + i * p->n, out);
    }
}

/* The derivatives of the outputs inside of a step by their times and the step's. */
static void move_outputs(const Problem *p, Back *b, const Span *s, T *const *k, double *dt0, double *dt1) {
    double w[STAGES], v[STAGES];
    for (i64 i = s->first; i < s->last; i++) {
        if (ends_step(p, i, s->t1)) continue;
        const double theta = (p->ts[i] - s->t0) / s->h;
        double by_h = 0, by_theta = 0; /* the latter over h */
        weights_at(p->method, theta, w, v);
        for (i64 j = 0; j < p->method->all; j++) {
            if (w[j] == 0 && v[j] == 0) continue;
            const double q = dot(p->n, p->ys + i * p->n, k[j]);
            by_h += w[j] * q;
            by_theta += v[j] * q;
        }
        b->moved[i] += by_theta;
        *dt0 += (theta - 1) * by_theta - by_h;
        *dt1 += by_h - theta * by_theta;
    }
}

/* gy = the product of g with df/dy, and sums of those with everything else; returns that with df/dt. */
static double product(const Problem *p, Back *b, T t, const T *y, const T *g, T *gy) {
    Graph *f = p->pull;
    T by_time = 0;
    f->in[0] = &t;
    f->in[1] = y;
    f->in[2] = g;
    f->out[0] = gy;
    if (b->timed) f->out[1] = &by_time;
    f->code(f->in, f->out, f->sizes, f->numbers, f->workspace);
    for (i64 i = 0; i < b->totals; i++) add(b->counts[i], 1, f->out[b->lead + i], b->sums[i]);
    return by_time;
}

/* How far y1, made again, is from the recorded one. */
static void compare(const Problem *p, Back *b, const T *again, const T *y1) {
    double off = 0, size = 0;
    for (i64 i = 0; i < p->n; i++) {
        const double d = (double)again[i] - y1[i];
        off += d * d;
        size += (double)y1[i] * y1[i];
    }
    const double beyond = sqrt(off) - b->allowed * sqrt(size);
    if (is_finite(size) && !(beyond <= b->drift)) b->drift = beyond;
}

/* The stages of a step from those kept, or again, and the states `at` that they were evaluated at. */
static void again(const Problem *p, Back *b, const Chunk *c, const Span *s, i64 used, T **k, T *at, T *end) {
    const Method *m = p->method;
    const i64 n = p->n, step = b->step - 1, own = m->stages - m->fsal;
    const T *y = c->Y + step * n;
    for (i64 i = 0; i < m->all; i++) k[i] = c->rows ? c->K + (step * c->rows + (i < c->rows ? i : 0)) * n : b->work + i * n;
    if (c->rows) {
        for (i64 i = 1; i < used; i++)
            if (i == m->f1) memcpy(at + i * n, y + n, n * sizeof(T));
            else shift(n, i, m->a + i * m->all, s->h, y, k, at + i * n);
        return;
    }
    stages(p, s->t0, s->t1, y, 0, k, 0, own, at, n);
    end_of(p, s->h, y, k, end);
    compare(p, b, end, y + n);
    if (m->f1 >= own && m->f1 < used) memcpy(at + m->f1 * n, end, n * sizeof(T));
    stages(p, s->t0, s->t1, y, end, k, own, used, at, n);
    b->calls += used;
}

/* Through the stages before `used`, but for the first `known` ones, which are given: from their cotangents `g` to `lam`,
   to the cotangents of earlier stages, and to the derivatives `by` the step's times and its length. */
static void pull_stages(const Problem *p, Back *b, const Span *s, const T *y, const T *at, T *const *k, T *const *g,
                        i64 known, i64 used, T *gy, Span *by) {
    const Method *m = p->method;
    const i64 n = p->n;
    for (i64 i = used - 1; i >= known; i--) {
        const double by_time = product(p, b, time_of(p, i, s->t0, s->t1), i ? at + i * n : y, g[i], gy);
        by->t0 += (1 - m->c[i]) * by_time;
        by->t1 += m->c[i] * by_time;
        add(n, 1, gy, b->lam);
        for (i64 j = 0; j < i; j++) {
            const double a = m->a[i * m->all + j];
            if (a == 0) continue;
            if (b->timed) by->h += a * dot(n, gy, k[j]);
            add(n, (T)(s->h * a), gy, g[j]);
        }
    }
}

/* One step: `lam` becomes the cotangent of the state that it starts from. */
static void replay(const Problem *p, Back *b, const Chunk *c, const Span *s, const Span *before) {
    const Method *m = p->method;
    const i64 n = p->n, own = m->stages - m->fsal, step = b->step - 1, linear = m->f1 >= 0 && m->f1 == m->all - 1;
    const T *basis = b->bases ? b->bases[step] : 0;
    const int hands_on = s->inside && linear && !b->bases && b->follows, based = s->inside || basis;
    const i64 used = hands_on || !based ? own : m->all;
    T *k[STAGES], *g[STAGES], *at = b->work + m->all * n, *gy = b->work + 3 * m->all * n, *end = gy + n;
    Span by = {0}; /* the derivatives by each */
    again(p, b, c, s, used, k, at, end);
    if (hands_on) k[m->f1] = b->f1;
    for (i64 i = s->first; i < s->last; i++)
        if (ends_step(p, i, s->t1)) add(n, 1, p->ys + i * n, b->lam);
    for (i64 j = 0; j < used; j++) {
        g[j] = b->work + (2 * m->all + j) * n;
        const T w = (T)(s->h * (j < m->stages ? m->b[j] : 0));
        for (i64 i = 0; i < n; i++) g[j][i] = w * b->lam[i];
        if (s->inside) pull_output(p, s, j, g[j]);
        if (basis) add(n, (T)s->h, basis + (j + 1) * n, g[j]);
        if (b->timed && j < m->stages && m->b[j] != 0) by.h += m->b[j] * dot(n, b->lam, k[j]);
        if (b->timed && basis) by.h += dot(n, basis + (j + 1) * n, k[j]);
    }
    if (before->inside) pull_output(p, before, m->f1, g[0]);
    if (b->timed) move_outputs(p, b, s, k, &by.t0, &by.t1);
    for (i64 i = s->first; i < s->last; i++)
        if (!ends_step(p, i, s->t1)) add(n, 1, p->ys + i * n, b->lam);
    if (basis) add(n, 1, basis, b->lam);
    pull_stages(p, b, s, c->Y + step * n, at, k, g, 0, used, gy, &by);
    if (b->timed) b->ends[step] += by.t0 - by.h, b->ends[step + 1] += by.t1 + by.h;
    memcpy(b->f1, k[0], n * sizeof(T));
    b->follows = !(p->n_jumps && jumps_at(p, s->t0));
}

/* Until the chunk's first step is done, or the slice of time is spent. */
API i64 sweep(const Problem *p, Back *b, const Chunk *c, double slice) {
    const Method *m = p->method;
    const double until = seconds() + slice;
    const int linear = m->f1 >= 0 && m->f1 == m->all - 1 && !b->bases;
    while (b->step) {
        if (seconds() > until) return PAUSED;
        const i64 n = b->step - 1;
        const Span own = span_of(p, b, c->times[n], c->times[n + 1], b->outputs, b->earlier + n == 0);
        const double t = n ? c->times[n - 1] : b->before;
        const int hands = linear && t == t && !(p->n_jumps && jumps_at(p, own.t0));
        Span before = {0};
        if (hands) before = span_of(p, b, t, own.t0, own.first, b->earlier + n == 1);
        replay(p, b, c, &own, &before);
        b->outputs = own.first;
        b->step = n;
    }
    return REACHED;
}
