/* native.h: the goroutines of the native set, and what the files of the C interface (gmp*.c) share.
 *
 * Three classes, that differ in their stack only.  A thread of other origin that waits is adopted: for good in a program
 * without Python, until it ends; beside Python for the time of the wait (a visit), because it may be, or become, an M of the
 * python set.
 */
#ifndef GMP_NATIVE_H
#define GMP_NATIVE_H

#include "chan.h"
#include "gmp.h"
#include "sync.h"

#define NATIVE_SET (&scheds[SET_NATIVE])

/* At the top of its slot; or the stand-in of an adopted thread (g.stack_lo == NULL), which is reused but never freed. */
typedef struct NativeG {
    G g; /* first */
    gmp_func fn;
    void *arg;
    void *local;
    gmp_waitgroup *wg;    /* told at the end, or NULL */
    uint16_t blocking;    /* depth of gmp_block_enter */
    Mutex lock;           /* guards what follows: gmp_park */
    bool parked, token;   /* token: gmp_ready came before gmp_park */
    uint32_t seq;         /* of the park */
    struct NativeG *next; /* free stand-ins */
} NativeG;

extern const Class native_classes[]; /* by GMP_STACK_... - 1 */

/* Starts the set unless it runs already.  GMP_E... */
int native_init(void);
int native_go(gmp_func fn, void *arg, int stack, gmp_waitgroup *wg);

/* The calling goroutine of the native set, or adopted thread; NULL on any other thread. */
static inline NativeG *
native_self(void)
{
    M *mp = getm();
    return GMP_LIKELY(mp != NULL) && mp->set == NATIVE_SET ? (NativeG *)mp->curg : NULL;
}

/* Round a call that may park, on a thread of which native_self() knows nothing.  GMP_E... */
typedef struct Visit {
    M *home;     /* the thread's M of another set, or NULL */
    bool ending; /* the thread is no M of the native set after the visit */
} Visit;
int visit_begin(Visit *v);
void visit_end(Visit *v);

/* return VISIT(call): makes the call, which returns a code, on a thread that may or may not have a G. */
#define VISITING(code, call)                                                                                           \
    do {                                                                                                               \
        if (GMP_LIKELY(native_self() != NULL)) {                                                                       \
            code = (call);                                                                                             \
        }                                                                                                              \
        else {                                                                                                         \
            Visit visit_;                                                                                              \
            if ((code = visit_begin(&visit_)) == GMP_OK) {                                                             \
                code = (call);                                                                                         \
                visit_end(&visit_);                                                                                    \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

struct gmp_chan {
    Hchan c;
};

struct gmp_waitgroup {
    Gwaitgroup wg;
};

#endif
