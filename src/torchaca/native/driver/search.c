/* Steps whose sizes follow the error estimate: the decisions of torchaca.loops.stepping.search, in double. */

#define TOO_SMALL 10       /* ulps of t */
#define LANDING (1 + 1e-9) /* a stop that is nearly reached is reached */
#define BAD_RATIO 1e10     /* what a nan or inf error counts as */
#define TINY_RATIO 1e-10
#define SLOW 1e-2 /* of the largest step */
#define PATIENCE 500
#define FLAT 1e-200

/* Whether a step is no more than a few ulps of t; an ulp is 2^-52 |t| at most. */
static int too_small(double t, double size) {
    return !(size > TOO_SMALL * 0x1p-52 * fabs(t) && size > 1e-300) && size <= TOO_SMALL * ulp(t);
}

static int at_dt_min(const Pace *w, double t, double size) { return size <= w->dt_min * LANDING + ulp(t); }

/* Hairer's first step size; one evaluation, not further than `reach` from t. */
static double guessed(const Problem *p, State *s, const T *y, T *state, T *slope) {
    const Tolerance *w = p->tolerance;
    const T *f0 = p->work;
    const double d0 = relative(w, y, 1, y, y), d1 = relative(w, f0, 1, y, y);
    const int small = d0 < 1e-5 || d1 < 1e-5;
    const double guess = small ? 1e-6 : 0.01 * d0 / d1, h0 = at_most(at_least(guess, 5e-324), p->pace->reach);
    const T h = (T)(p->sign * h0);
    for (i64 i = 0; i < p->n; i++) state[i] = y[i] + h * f0[i];
    evaluate(p->value, (T)(s->t + p->sign * h0), state, slope);
    s->calls++;
    for (i64 i = 0; i < p->n; i++) slope[i] -= f0[i];
    const double change = relative(w, slope, 1, y, y), steepest = at_least(change / h0, d1);
    const double h1 = steepest <= 1e-15 ? at_least(h0 * 1e-3, 1e-6)
                                        : pow(0.01 / at_least(steepest, 1e-15), 1.0 / p->method->order);
    const double h2 = at_most(h1, 100 * h0), steep = change / (h0 * at_least(d1, FLAT));
    s->start = d0;
    return d1 * h2 <= 1 && d1 > 0 ? at_most(h2, p->pace->calm / at_least(steep, FLAT)) : h2;
}

/* The first step size; 0 where f has no finite value. */
static double first_dt(const Problem *p, State *s, const T *y, T *state, T *slope) {
    const Pace *w = p->pace;
    const double guess = guessed(p, s, y, state, slope);
    if (!is_finite(guess))
        for (i64 i = 0; i < p->n; i++)
            if (!is_finite(p->work[i])) return 0;
    const int usable = fabs(guess) < INFINITY && guess >= w->dt_min && guess > w->smallest;
    return usable ? at_least(guess, 2 * at_least(TOO_SMALL * ulp(s->t), w->smallest)) : w->fallback;
}

/* Why not to make a trial of this size, -1 if nothing speaks against it; see torchaca.loops.pace.refusals. */
static i64 refusal(const Pace *w, const State *s, double size, int lands) {
    const int ordinary = !lands || s->rejections > 0;
    if (ordinary && too_small(s->t, size)) return STEP_SIZE;
    if (ordinary && size <= w->smallest) return NO_SMALLER;
    if (s->trials >= w->max_trials) return MAX_STEPS;
    if (w->dt_min > 0 && s->rejections > 0 && at_dt_min(w, s->t, s->rejected_size)) return AT_DT_MIN;
    return s->rejections >= w->most_rejections ? REJECTIONS : -1;
}

/* The size that the controller wants after a trial of `size` with this error ratio; see pace.next_dt. */
static double next_dt(const Problem *p, const State *s, double ratio, double size, int clipped, int ok) {
    const Pace *w = p->pace;
    const double ratios[3] = {ratio, s->ratio, s->older};
    const i64 known = 1 + (ok ? s->ratios : 0);
    double factor = w->safety;
    for (i64 i = 0; i < known; i++)
        if (w->powers[i] != 0) factor *= pow(at_least(ratios[i], TINY_RATIO), w->powers[i]);
    const double high = !ok || s->rejections > 0 ? 1.0 : w->high;
    const double wanted = size * at_most(at_least(factor, w->low), high);
    return ok && clipped && wanted < s->dt ? s->dt : at_least(wanted, w->dt_min);
}

static void note_accepted(State *s, double ratio, double size) {
    s->older = s->ratio;
    s->ratio = ratio;
    s->ratios += s->ratios < 2;
    s->rejections = 0;
    s->rejected_size = INFINITY;
    s->largest = at_least(s->largest, size);
    s->slow = size < SLOW * s->largest ? s->slow + 1 : 0;
    if (!s->slow) s->next_look = PATIENCE;
}

static void note_rejected(State *s, double size) {
    s->rejections++;
    s->rejected++;
    s->rejected_size = size;
    s->known = 1;
}

/* Until the last of the `stops`, or the chunk is full, or the slice of time is spent, or no trial makes sense, or a step
   has an error that says nothing, so that the next one may have to be bounded, or an event may happen in one. A dt of
   nan is one to be guessed. */
API i64 search(const Problem *p, State *s, Chunk *c, double slice) {
    const Method *m = p->method;
    const Pace *w = p->pace;
    const double until = seconds() + slice;
    const i64 n = p->n;
    T *k[STAGES], *trial = p->work + m->all * n, *error = trial + n, *spare = error + n;
    if (s->dt != s->dt && (s->dt = first_dt(p, s, state_at(p, c, c->steps), error, spare)) == 0) return HOPELESS;
    for (;;) {
        const double stop = p->stops[s->stop], t = s->t;
        if (t == stop) {
            if (++s->stop == p->n_stops) return REACHED;
            continue;
        }
        if (c->steps == c->room) return FULL;
        if (seconds() > until) return PAUSED;
        const double wanted = at_most(s->dt, w->dt_max), left = fabs(stop - t);
        const int lands = left <= wanted * LANDING, clipped = lands && left < wanted;
        const double t1 = lands ? stop : t + p->sign * wanted, h = t1 - t, size = fabs(h);
        if ((s->reason = refusal(w, s, size, t1 == stop)) >= 0) return REFUSED;
        if (s->slow >= s->next_look && !s->rejections) return LOOK;
        const T *y = state_at(p, c, c->steps);
        T *y1 = state_at(p, c, c->steps + 1);
        places(p, c, k);
        stages(p, t, t1, y, y1, k, s->known, m->stages - m->fsal, trial, 0);
        end_of(p, h, y, k, y1);
        stages(p, t, t1, y, y1, k, m->stages - m->fsal, m->stages, trial, 0);
        s->calls += m->stages - s->known;
        s->trials++;
        const double e = weighed(n, m->stages, m->e, k, error), found = relative(p->tolerance, error, (T)(h * e), y, y1);
        const double ratio = is_finite(found) ? found : BAD_RATIO;
        const int ok = ratio <= 1 || (w->at_least_dt_min && at_dt_min(w, t, size) && is_finite(found));
        s->dt = next_dt(p, s, ratio, size, clipped, ok);
        if (!ok) {
            note_rejected(s, size);
            continue;
        }
        const i64 known = outputs(p, s, c, t, t1, y, y1, k, m->stages, trial);
        look(p, s, t, t1, y, y1, k, known, trial);
        accept(p, s, c, t1, k, known);
        note_accepted(s, ratio, size);
        if (found <= w->room) return RESTS;
        if (s->seen) return SEEN;
    }
}
