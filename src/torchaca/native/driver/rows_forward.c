/* Forward: every lane tries a step of its row at once, and accepts or rejects its own. */

/* The steps that lanes try: the problems of their rows, which lanes do, from where to where, whether they are cut short,
   which accept theirs and pass outputs, some of them inside, and know f at their ends. */
typedef struct {
    Problem each[W];
    double t0[W], t1[W];
    i64 tries[W], clipped[W], accepted[W], passes[W], inside[W], slope[W];
} Trial;

/* A problem of one lane, for functions that know of no others. */
static Problem of_one(const Problem *p, const Graph *f) {
    Problem one = *p;
    one.value = (Graph *)f;
    return one;
}

/* Begin with a row: its outputs at the start, f there, and the first step size. */
static void start(Problem *p, Rows *r, State *s, i64 w) {
    Lane *l = r->lanes + w;
    const i64 n = p->n;
    enter(p, r, l->row);
    const T *y = r->y0 + l->row * n;
    const void *in[2];
    Alone lane = {p, r, w};
    const Graph f = {of_lane, in, 0, 0, 0, (T *)&lane};
    const Problem one = of_one(p, &f);
    l->begun = 1;
    l->since = NAN;
    s->t = p->ts[0];
    r->t[w] = (T)s->t;
    read_row(p->value, r, l->row, w, 0);
    scatter(n, w, y, kept_at(p, r, STATE));
    for (i64 i = 0; i < n; i++) {
        kept_at(p, r, RTOL)[i * W + w] = p->tolerance ? p->tolerance->rtol[i * p->tolerance->rtol_stride] : 0;
        kept_at(p, r, ATOL)[i * W + w] = p->tolerance ? p->tolerance->atol[i * p->tolerance->atol_stride] : 1;
    }
    for (i64 end = outputs_at_start(p); s->outputs < end; s->outputs++)
        memcpy(p->ys + s->outputs * n, y, n * sizeof(T));
    if (s->outputs == p->n_ts) return;
    slope(&one, s->t, y, p->work);
    scatter(n, w, p->work, kept_at(p, r, FIRST_STAGE));
    s->known = s->calls = 1;
    if (!p->tolerance || s->dt == s->dt) return;
    T *spare = p->work + p->method->all * n;
    s->dt = first_dt(&one, s, y, spare, spare + n);
    if (s->dt == 0) s->dt = p->pace->fallback;
}

/* The next step of a lane: -1 if there is one, else why there is none. */
static i64 proposed(const Problem *p, State *s, Trial *trial, i64 w) {
    const double t = trial->t0[w] = s->t;
    if (s->outputs == p->n_ts) return REACHED;
    if (!p->tolerance) {
        if (s->stop == p->n_stops) return REACHED;
        trial->t1[w] = p->stops[s->stop];
        return -1;
    }
    while (t == p->stops[s->stop])
        if (++s->stop == p->n_stops) return REACHED;
    const double stop = p->stops[s->stop], wanted = at_most(s->dt, p->pace->dt_max), left = fabs(stop - t);
    const int lands = left <= wanted * LANDING;
    trial->clipped[w] = lands && left < wanted;
    trial->t1[w] = lands ? stop : t + p->sign * wanted;
    s->reason = refusal(p->pace, s, fabs(trial->t1[w] - t), trial->t1[w] == stop);
    if (s->slow >= s->next_look && !s->rejections) s->next_look = INT64_MAX;
    return s->reason >= 0 ? REFUSED : -1;
}

/* A row is done, or cannot go on: the outputs that it has not reached repeat its last state. */
static void finish(const Problem *p, Rows *r, State *s, const Chunk *c, i64 w) {
    for (i64 i = s->outputs; i < p->n_ts; i++) gather(p->n, w, kept_at(p, r, STATE), p->ys + i * p->n);
    close_segment(r, c, w, 1);
    r->lanes[w].row = -1;
}

/* Have a lane know its next step; -1 if it does, or if there are no more rows. */
static i64 ready(Problem *p, Rows *r, const Chunk *c, Trial *trial, i64 w) {
    Lane *l = r->lanes + w;
    trial->tries[w] = 0;
    for (;;) {
        if (l->row < 0) {
            trial->t0[w] = trial->t1[w] = r->t[w];
            if (r->row == r->last) return -1;
            if (r->room - l->used < 2) return FULL;
            l->row = r->row++;
            l->begun = 0;
        }
        State *s = r->states + l->row;
        if (!l->open) {
            if (r->room - l->used < 2) return FULL;
            if (!l->begun) start(p, r, s, w);
            enter(p, r, l->row);
            trial->each[w] = *p;
            open_segment(p, r, c, w);
        }
        const i64 status = proposed(trial->each + w, s, trial, w);
        trial->tries[w] = status < 0;
        if (status < 0) return l->steps + 2 > r->room - l->used ? FULL : -1;
        finish(trial->each + w, r, s, c, w);
        if (status == REFUSED && !r->alone) return REFUSED;
    }
}

/* The outputs of a lane's step, whose stages are there. */
static void write_outputs(const Problem *p, State *s, const Trial *trial, T *const *k, const T *y, const T *y1, i64 w) {
    const Method *m = p->method;
    const double t0 = trial->t0[w], t1 = trial->t1[w], h = t1 - t0;
    for (; s->outputs < p->n_ts && p->sign * p->ts[s->outputs] <= p->sign * t1; s->outputs++) {
        T *out = p->ys + s->outputs * p->n;
        if (ends_step(p, s->outputs, t1)) {
            gather(p->n, w, y1, out);
            continue;
        }
        double b[STAGES];
        weights_at(m, (p->ts[s->outputs] - t0) / h, b, 0);
        memset(out, 0, p->n * sizeof(T));
        for (i64 j = m->all - 1; j >= 0; j--) /* increments before they meet y */
            if (b[j] != 0)
                for (i64 i = 0; i < p->n; i++) out[i] += (T)(h * b[j]) * k[j][i * W + w];
        for (i64 i = 0; i < p->n; i++) out[i] += y[i * W + w];
    }
}

static int passes(const Problem *p, const State *s, double t1) {
    return s->outputs < p->n_ts && p->sign * p->ts[s->outputs] <= p->sign * t1;
}

/* Whether outputs are inside of a lane's step, which take the stages of the interpolant. */
static int any_inside(const Problem *p, const State *s, double t1) {
    for (i64 i = s->outputs; i < p->n_ts && p->sign * p->ts[i] <= p->sign * t1; i++)
        if (!ends_step(p, i, t1)) return 1;
    return 0;
}

/* Decide about the steps, by how large their errors are: a row's next size. */
static void judge(const Problem *p, Rows *r, Trial *trial, const double *found) {
    EACH_LANE {
        State *s = r->states + r->lanes[w].row;
        trial->accepted[w] = trial->tries[w];
        if (!trial->tries[w] || !p->tolerance) continue;
        const double size = fabs(trial->t1[w] - trial->t0[w]), ratio = is_finite(found[w]) ? found[w] : BAD_RATIO;
        const int ok = ratio <= 1 || (p->pace->at_least_dt_min && at_dt_min(p->pace, trial->t0[w], size) && is_finite(found[w]));
        s->trials++;
        s->dt = next_dt(p, s, ratio, size, (int)trial->clipped[w], ok);
        trial->accepted[w] = ok;
        if (ok) note_accepted(s, ratio, size);
        else note_rejected(s, size);
    }
}

/* Note the accepted step of a lane: outputs, stages, state, times. */
static void accept_row(Rows *r, const Chunk *c, Trial *trial, T *const *k, i64 w) {
    const Problem *p = trial->each + w;
    Lane *l = r->lanes + w;
    State *s = r->states + l->row;
    const i64 n = p->n, f1 = p->method->f1, slot = slot_of(r, w) + l->steps;
    const i64 known = trial->inside[w] ? p->method->all : p->method->stages - (p->tolerance ? 0 : p->method->fsal);
    if (trial->passes[w]) write_outputs(p, s, trial, k, kept_at(p, r, STATE), kept_at(p, r, END), w);
    for (i64 j = 0; j < (known < c->rows ? known : c->rows); j++) gather(n, w, k[j], c->K + (slot * c->rows + j) * n);
    s->known = trial->slope[w] = f1 >= 0 && f1 < known && !(p->n_jumps && jumps_at(p, trial->t1[w]));
    s->shortest = at_most(s->shortest, fabs(trial->t1[w] - s->t));
    s->t = trial->t1[w];
    s->accepted++;
    s->stop += !p->tolerance;
    l->steps++;
}

/* Bound the next step of a lane whose error says nothing; f at its end, if that is new, becomes its first stage. */
static void bound_row(Problem *p, Rows *r, T *const *k, i64 w) {
    const i64 n = p->n, row = r->lanes[w].row;
    enter(p, r, row);
    State *s = r->states + row;
    T *f0 = p->work, *before = p->work + (p->method->all + 3) * n, *now = before + n;
    const void *in[2];
    Alone lane = {p, r, w};
    const Graph f = {of_lane, in, 0, 0, 0, (T *)&lane};
    const Problem one = of_one(p, &f);
    const i64 known = s->known;
    gather(n, w, kept_at(p, r, STATE), before);
    gather(n, w, kept_at(p, r, END), now);
    if (known) gather(n, w, k[p->method->f1], f0);
    bound(&one, r, s, row, before, now);
    if (s->known && !known) scatter(n, w, f0, k[0]);
}

/* One trial of all lanes. */
static void try_all(Problem *p, Rows *r, const Chunk *c, Trial *trial) {
    const Method *m = p->method;
    const i64 n = p->n, own = m->stages - m->fsal, last = p->tolerance ? m->stages : own;
    T *k[STAGES], *y = kept_at(p, r, STATE), *y1 = kept_at(p, r, END), *at = kept_at(p, r, TRIAL), *error = kept_at(p, r, ERROR);
    double found[W], factor[W];
    i64 first = 1, more = 0;
    for (i64 j = 0; j < m->all; j++) k[j] = kept_at(p, r, FIRST_STAGE + j);
    EACH_LANE if (trial->tries[w]) {
        State *s = r->states + r->lanes[w].row;
        if (!s->known) first = 0;
        s->calls += last - s->known;
    }
    stages_lanes(p, trial->t0, trial->t1, y, y1, k, first, own, at, 0);
    end_of_lanes(p, trial->t0, trial->t1, y, k, y1);
    stages_lanes(p, trial->t0, trial->t1, y, y1, k, own, last, at, 0);
    if (p->tolerance) {
        const double e = weighed_lanes(n, m->stages, m->e, k, error);
        EACH_LANE factor[w] = (trial->t1[w] - trial->t0[w]) * e;
        relative_lanes(p->tolerance, kept_at(p, r, RTOL), kept_at(p, r, ATOL), error, factor, y, y1, found);
    }
    judge(p, r, trial, found);
    EACH_LANE {
        State *s = r->states + r->lanes[w].row;
        trial->inside[w] = trial->slope[w] = 0;
        trial->passes[w] = trial->accepted[w] && passes(trial->each + w, s, trial->t1[w]);
        if (!trial->passes[w]) continue;
        trial->inside[w] = any_inside(trial->each + w, s, trial->t1[w]);
        if (trial->inside[w]) more = 1, s->calls += m->all - last;
    }
    if (more) stages_lanes(p, trial->t0, trial->t1, y, y1, k, last, m->all, at, 0);
    EACH_LANE if (trial->accepted[w]) {
        accept_row(r, c, trial, k, w);
        if (p->tolerance && found[w] <= p->pace->room) bound_row(p, r, k, w);
    }
    take_lanes(n, trial->accepted, y1, y);
    if (m->f1 >= 0) take_lanes(n, trial->slope, k[m->f1], k[0]);
    EACH_LANE if (trial->accepted[w]) {
        r->t[w] = (T)trial->t1[w];
        keep_state(p, r, c, w);
    }
}

/* Until the last row is done, or the chunk is full, or the slice of time is spent, or a row cannot go on. */
API i64 forward_rows(Problem *p, Rows *r, Chunk *c, double slice) {
    const double until = seconds() + slice;
    Trial trial;
    EACH_LANE {
        if (r->lanes[w].row >= 0) enter(p, r, r->lanes[w].row);
        trial.each[w] = *p;
    }
    for (;;) {
        i64 status = -1, tries = 0;
        for (i64 w = 0; w < W && status < 0; w++) {
            status = ready(p, r, c, &trial, w);
            tries += trial.tries[w];
        }
        if (status < 0 && !tries) status = REACHED;
        if (status >= 0) {
            EACH_LANE if (r->lanes[w].open) close_segment(r, c, w, 0);
            return status;
        }
        if (seconds() > until) return PAUSED;
        try_all(p, r, c, &trial);
    }
}

/* f of all rows at states `y0`, where their times start: each in two lanes, since it must not matter in which, and beside
   others than in a batch of all, the first of a few more often than the rest. */
API i64 slopes_of_rows(Problem *p, Rows *r, T *out) {
    const i64 n = p->n, step = W > 2 ? W / 2 - 1 : 1;
    T *y = kept_at(p, r, STATE), *k = kept_at(p, r, END);
    for (i64 row = r->row; row < r->last; row += step) {
        const i64 rows = at_most(step, r->last - row);
        EACH_LANE {
            const i64 place = w < W - 1 - w ? w : W - 1 - w, own = row + (place < rows ? place : 0);
            read_row(p->value, r, own, w, 0);
            r->t[w] = (T)r->ts[own * p->n_ts];
            scatter(n, w, r->y0 + own * n, y);
        }
        evaluate_lanes(p->value, r->t, y, k);
        for (i64 w = 0; w < rows; w++)
            for (i64 i = 0; i < n; i++) {
                const T one = k[i * W + w], other = k[i * W + W - 1 - w];
                out[(row + w) * n + i] = W > 1 && one != other ? (T)NAN : one;
            }
    }
    return 0;
}
