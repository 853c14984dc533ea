/* What the loops read and write, shared with torchaca.native.records, which mirrors it field by field.

   T is the type of a state's numbers; times and step sizes are double, as in the loops in Python. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define API __attribute__((visibility("default")))
#define STAGES 64 /* the most that a method may have, those of its interpolant included */

typedef int64_t i64;

/* f, or its vector-Jacobian product: a graph as code, and what it is called with. The first of `in` are t and y, and
   in a product the cotangent; they are put there for each call, so that one solve at a time has a Graph. */
typedef struct {
    void (*code)(const void *const *in, void *const *out, const i64 *sizes, const double *numbers, T *workspace);
    const void **in;
    void **out;
    const i64 *sizes;
    const double *numbers;
    T *workspace;
} Graph;

/* An explicit Runge-Kutta method: `all` stages with those of the interpolant, `a` has rows of that length, `p` those of
   polynomials in theta, from theta^0 to theta^degree. `f1` is which stage is f(t1, y1), -1 if none is. */
typedef struct {
    i64 stages, all, fsal, order, f1, degree;
    const double *c, *a, *b, *e, *p;
} Method;

/* How an error is measured: numbers of stride 0, or one for each component, and over which parts of the state. */
enum { VECTOR, RMS, MAX };
typedef struct {
    i64 norm, rtol_stride, atol_stride, parts;
    const T *rtol, *atol;
    const i64 *ends; /* of the parts */
    double relative, least; /* VECTOR: the scale is least + relative size, with the mean's 1 / sqrt(n) in it */
} Tolerance;

/* The pace of a search; see torchaca.loops.pace.Limits and torchaca.loops.rule.StepRule. `calm` over |df/dy| is how long
   a first step may be that moves less than its tolerance; a ratio of `room` at most is one of an error that says nothing
   (see torchaca.loops.rest). */
typedef struct {
    double smallest, dt_min, dt_max, fallback, reach, safety, low, high, calm, room;
    double powers[3]; /* of the newest error ratios, newest first */
    i64 max_trials, most_rejections, at_least_dt_min;
} Pace;

/* The events of a problem: g of each as code, which `directions` of a crossing count, on which side of zero it was at the
   end of the last step, 0 if that is not known, and its values in that step, one for the start and each of the PARTS. */
#define PARTS 4
typedef struct {
    i64 n;
    Graph *const *graphs;
    const i64 *directions;
    i64 *sides;
    double *values;
} Watch;

/* One problem. `exact` says of each output time that it is the end of a step, where its value is. Steps end at the
   `stops`; f jumps at the `jumps`. `dense`: the basis of each step is kept. */
typedef struct {
    const Method *method;
    const Tolerance *tolerance;
    const Pace *pace;
    Graph *value, *pull;
    i64 n, n_ts, n_stops, n_jumps, dense;
    double sign;
    const double *ts, *stops, *jumps;
    const int8_t *exact;
    T *ys;   /* (n_ts, n): the outputs, or their cotangents */
    T *work; /* forward: all + 3 states */
    const Watch *watch; /* or null */
} Problem;

/* Where a forward pass is. `known`: the first state in `work` is f(t, y). `slow` steps in a row were short. `start` is
   the norm of y0 in units of its tolerances, where the first step was guessed. `seen`: an event may happen in the last
   step, of which so many stages are there. */
typedef struct {
    double t, dt, ratio, older, rejected_size, largest, shortest, start;
    i64 ratios, known, trials, calls, rejections, rejected, accepted, outputs, stop, slow, next_look, reason, seen;
} State;

/* The steps between two returns to Python. Y has room + 1 states where they are kept, else 2; K the stages, `rows` for
   each step, and B the bases, or they are null. */
typedef struct {
    i64 room, steps, kept, rows;
    double *times;
    T *Y, *K, *B;
} Chunk;

/* Rows: independent problems of n numbers each, those from `row` to `last`, of which so many at a time are solved side by
   side, in lanes; a lane takes the next row when its own is done.

   What each row has of its own: `ts` (rows, n_ts), `stops` (rows, most_stops), numbers, a State; of the tensors that f
   reads, those of `inputs`: at `places` among the inputs of its code (one further in those of the product), where they
   have lanes, `counts` numbers of `sizes` bytes each, from rows that start at `bases`; the lanes of those that are `laid`
   lie side by side, others one after the other. `method` and so on are those of
   the Problem. With `alone`, rows go on where another cannot. `work` holds what lanes need between two steps, `t` the
   times they are at.

   Backward, `lam` is the cotangent of all states; `totals` are the sums, `own` says which of them have rows, 1, or 2 where
   their lanes lie side by side, and `sums` those that have lanes meanwhile. The rest is torchaca.loops.rest. */
typedef struct {
    i64 row, last, alone, inputs, most_stops, most_calls, looks, room;
    Tolerance *tolerance;
    Pace *pace;
    const T *rtol, *atol, *y0;
    const double *ts, *stops, *signs, *reach, *fallback, *spans, *least;
    const i64 *n_stops, *places, *counts, *sizes, *laid;
    char *const *bases;
    State *states;
    struct Lane *lanes;
    i64 *of, *slots, *steps, *before, *ends;
    double *befores, *steepness;
    T *ys, *directions, *lam, *work, *t;
    const i64 *own;
    T **sums;
    T *const *totals;
    double theta, good, total, fading, near, nearest, still, rounding;
} Rows;

/* A lane. It has `room` slots of a chunk, and room for as many segments.

   A segment is what a chunk has of a row: which one it is `of`, from which of the `slots` on, how many `steps` and a
   state more, how many are `before` it, the last of which starts at `befores`, and whether the row `ends` there. Its
   lane has so many `segments` in `used` slots; the row has `begun`, its segment is `open` and has `steps`, and the last
   step before it starts at `since`. Where a backward pass is: as in Back. */
typedef struct Lane {
    i64 row, segments, used, begun, open, steps, step, outputs, first, follows, calls;
    double since, before;
} Lane;

enum { REACHED, FULL, PAUSED, LOOK, HOPELESS, REFUSED, RESTS, SEEN };
enum { STEP_SIZE, NO_SMALLER, MAX_STEPS, AT_DT_MIN, REJECTIONS };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* Where a backward pass is: `step` steps of the chunk are left, `outputs` outputs are at or before their end. `before`
   is where the last step of the chunk before starts, nan if there is none; so many steps are before the chunk in all.
   `follows`: another step of the solve does, and f does not jump there. `first` is the first output behind t0.
   `lam` is the cotangent of the state, `f1` f at the end of the step (for the one before), `work` has 3 all + 3
   states. `sums` are those of the `totals` tensors of `counts` numbers, whose parts are outputs of the product behind
   the `lead` ones; `ends` and `moved` get the derivatives by the times of steps and outputs, where they are asked for.
   `drift` is how far a replayed step is from the recorded one beyond `allowed` of its size. */
typedef struct {
    i64 step, outputs, first, follows, earlier, calls, totals, lead, timed;
    double before, drift, allowed;
    T *lam, *f1, *work;
    T *const *sums;
    const i64 *counts;
    double *ends, *moved;
    const T *const *bases; /* cotangents of the steps' bases, null where there are none */
} Back;

/* The size of each of these, by which records are checked. */
API i64 layout(i64 which) {
    const i64 sizes[] = {sizeof(Graph), sizeof(Method), sizeof(Tolerance), sizeof(Pace), sizeof(Problem),
                         sizeof(State), sizeof(Chunk), sizeof(Back), sizeof(Rows), sizeof(Watch),
                         sizeof(Lane)};
    return sizes[which];
}
