/* Rows: each is searched, or marched, and swept like a solve of its own, one after the other. */

/* Make the problem that of a row. */
static void enter(Problem *p, Rows *r, i64 row) {
    p->ts = r->ts + row * p->n_ts;
    p->stops = r->stops + row * r->most_stops;
    p->n_stops = r->n_stops[row];
    p->sign = r->signs[row];
    p->ys = r->ys + row * p->n_ts * p->n;
    for (i64 i = 0; i < r->inputs; i++) {
        const void *at = r->bases[i] + row * r->strides[i];
        if (p->value) p->value->in[r->places[i]] = at;
        if (p->pull) p->pull->in[r->places[i] + 1] = at;
    }
    if (!p->tolerance) return;
    r->tolerance->rtol = r->rtol + row * p->n * r->tolerance->rtol_stride;
    r->tolerance->atol = r->atol + row * p->n * r->tolerance->atol_stride;
    r->pace->reach = r->reach[row];
    r->pace->fallback = r->fallback[row];
}

/* What a chunk has from a slot on: a state more than steps where they are kept. */
static Chunk from_slot(const Problem *p, const Chunk *c, i64 slot) {
    Chunk own = *c;
    own.room -= slot;
    own.times += slot;
    own.Y += c->kept ? slot * p->n : 0;
    own.K += c->rows * slot * p->n;
    return own;
}

static i64 outputs_at_start(const Problem *p) {
    i64 count = 1;
    while (count < p->n_ts && p->ts[count] == p->ts[0]) count++;
    return count;
}

/* A new segment: of a row that starts, or that goes on in this chunk. */
static void open_segment(const Problem *p, Rows *r, State *s, Chunk *own) {
    const i64 g = r->segments, n = p->n;
    const T *y = r->begun ? r->state : r->y0 + r->row * n;
    own->steps = 0;
    memcpy(own->Y, y, n * sizeof(T));
    if (!r->begun) {
        s->t = p->ts[0];
        r->since = NAN;
        for (i64 end = outputs_at_start(p); s->outputs < end; s->outputs++)
            memcpy(p->ys + s->outputs * n, y, n * sizeof(T));
        if (s->outputs < p->n_ts) {
            slope(p, s->t, y, p->work);
            s->known = s->calls = 1;
        }
    }
    own->times[0] = s->t;
    r->of[g] = r->row;
    r->slots[g] = r->used;
    r->before[g] = s->accepted;
    r->befores[g] = r->since;
    r->begun = r->open = 1;
}

static void close_segment(Rows *r, const Chunk *own, i64 ends) {
    r->steps[r->segments] = own->steps;
    r->ends[r->segments++] = ends;
    r->used += own->steps + 1;
    r->open = 0;
}

/* Look beside the end of a step that says nothing, and bound the next one; see torchaca.loops.rest. */
static void bound(const Problem *p, Rows *r, State *s, const Chunk *c) {
    const i64 n = p->n;
    const T *before = state_at(p, c, c->steps - 1), *y = state_at(p, c, c->steps);
    const Tolerance *tolerance = p->tolerance;
    T *v = r->directions + r->row * n, *f0 = p->work, *state = f0 + p->method->all * n, *w = state + n;
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
    evaluate(p->value, (T)s->t, state, w);
    s->calls++;
    for (i64 i = 0; i < n; i++) w[i] -= f0[i];
    const double rise = sqrt(dot(n, w, w)), old = r->fading * r->steepness[r->row];
    const int seen = rise > 0 && is_finite(rise);
    if (seen) {
        for (i64 i = 0; i < n; i++) state[i] = v[i] / 2 + w[i] * (T)(root / rise);
        const double length = sqrt(dot(n, state, state));
        for (i64 i = 0; i < n; i++) v[i] = state[i] * (T)(root / at_least(length, FLAT));
    }
    const double steep = at_least(at_least(seen ? rise / (beside * root) : 0, old), FLAT);
    const double small = r->good * pow(r->total / at_least(r->spans[r->row] * steep, FLAT), 1.0 / p->method->order);
    r->steepness[r->row] = steep;
    s->dt = at_most(s->dt, at_least(at_most(small, r->theta) / steep, r->least[r->row]));
}

/* One row, as far as the chunk and the slice go. */
static i64 forward_row(const Problem *p, Rows *r, State *s, Chunk *own, double until) {
    if (s->outputs == p->n_ts) return REACHED;
    if (!p->tolerance) return march(p, s, own, until - seconds());
    for (;;) {
        const i64 status = search(p, s, own, until - seconds());
        if (status == LOOK) s->next_look = INT64_MAX;
        else if (status == HOPELESS) s->dt = p->pace->fallback;
        else if (status == RESTS) bound(p, r, s, own);
        else return status;
    }
}

/* Until the last row is done, or the chunk is full, or the slice of time is spent, or a row cannot go on. */
API i64 forward_rows(Problem *p, Rows *r, Chunk *c, double slice) {
    const double until = seconds() + slice;
    const i64 n = p->n;
    while (r->row < r->last) {
        State *s = r->states + r->row;
        if (!r->open && c->room - r->used < 1) return FULL;
        enter(p, r, r->row);
        Chunk own = from_slot(p, c, r->used);
        if (!r->open) open_segment(p, r, s, &own);
        else own.steps = r->taken;
        const i64 status = forward_row(p, r, s, &own, until);
        r->taken = own.steps;
        if (status == PAUSED) return PAUSED;
        const T *y = state_at(p, &own, own.steps);
        close_segment(r, &own, status != FULL);
        if (status == FULL) {
            memcpy(r->state, y, n * sizeof(T));
            r->since = own.times[own.steps - 1];
            return FULL;
        }
        for (i64 i = s->outputs; i < p->n_ts; i++) memcpy(p->ys + i * n, y, n * sizeof(T));
        r->row++;
        r->begun = 0;
        if (status == REFUSED && !r->alone) return REFUSED;
    }
    return REACHED;
}

/* Make the backward pass that of a segment. */
static void enter_back(const Problem *p, Back *b, Rows *r, i64 g) {
    const i64 row = r->of[g], n = p->n, reached = r->states[row].outputs;
    for (i64 i = 0; i < b->totals; i++) r->sums[i] = r->totals[i] + (r->own[i] ? row * b->counts[i] : 0);
    b->lam = r->lam + row * n;
    b->first = outputs_at_start(p);
    b->step = r->steps[g];
    b->earlier = r->before[g];
    b->before = r->befores[g];
    r->open = 1;
    if (!r->ends[g]) return;
    b->follows = b->calls = 0;
    b->outputs = reached;
    for (i64 i = reached; i < p->n_ts; i++) add(n, 1, p->ys + i * n, b->lam); /* those behind the end repeat it */
}

/* Until the first segment of the chunk is done, or the slice of time is spent. */
API i64 backward_rows(Problem *p, Back *b, Rows *r, Chunk *c, double slice) {
    const double until = seconds() + slice;
    for (; r->segments; r->segments--) {
        const i64 g = r->segments - 1;
        enter(p, r, r->of[g]);
        const Chunk own = from_slot(p, c, r->slots[g]);
        if (!r->open) enter_back(p, b, r, g);
        if (sweep(p, b, &own, until - seconds()) == PAUSED) return PAUSED;
        r->open = 0;
        if (r->before[g]) continue;
        for (i64 i = 0; i < b->first; i++) add(p->n, 1, p->ys + i * p->n, b->lam);
        if (b->calls > r->most_calls) r->most_calls = b->calls;
    }
    return REACHED;
}

/* f where rows start. */
API i64 slopes_of_rows(Problem *p, Rows *r, T *out) {
    for (i64 row = r->row; row < r->last; row++) {
        enter(p, r, row);
        slope(p, p->ts[0], r->y0 + row * p->n, out + row * p->n);
    }
    return 0;
}
