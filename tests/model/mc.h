/* mc.h: the model checker's seams and what a model is made of.
 *
 * A model includes this file, then sources of the core.  The core reaches memory shared between threads through atomic.h and
 * the system through sys.h; here both are replaced, so that the sources themselves, unchanged, run on threads that mc.c
 * schedules: fibres of one OS thread.  Every atomic operation is a scheduling point, at which mc.c tries every thread.
 *
 *   MODEL(name, bounds) { mc_thread("a", fn, arg); ... }   prepares one execution; run many times
 *   mc_at_end(fn)        fn runs when no thread can go on, and checks what is left; those that may not sleep have ended
 *   MC_CHECK(cond)       fails the model: mc.c prints the interleaving that led there
 *
 * Times are virtual: the clock moves when a thread with a time limit is woken by it.  Memory comes from an arena that is
 * empty again at the start of the next execution, as all static variables are what they were.
 */
#ifndef GMP_MC_H
#define GMP_MC_H

#include <stdio.h>

#include "base.h"

/* ---- memory order and atomics: stands in for atomic.h ---- */
#define GMP_ATOMIC_H

typedef enum McOrder { MC_RELAXED, MC_ACQUIRE, MC_RELEASE, MC_SEQ_CST } McOrder;
typedef enum McOp { MC_XCHG, MC_XADD } McOp;

uint64_t mc_load(void *p, unsigned size, McOrder o, const char *fn, int line);
void mc_store(void *p, unsigned size, uint64_t v, McOrder o, const char *fn, int line);
uint64_t mc_rmw(void *p, unsigned size, McOp op, uint64_t v, McOrder o, const char *fn, int line);
bool mc_cas(void *p, unsigned size, uint64_t was, uint64_t v, McOrder o, const char *fn, int line);
void mc_fence(const char *fn, int line);
void mc_yield(const char *fn, int line); /* the thread waits for another's progress: switching is free */

#define MC_BITS(v) ((uint64_t)(v))
#define MC_LOAD(p, o) ((__typeof__(*(p)))mc_load((void *)(p), sizeof *(p), o, __func__, __LINE__))
#define MC_STORE(p, v, o)                                                                                              \
    __extension__({                                                                                                    \
        __typeof__(*(p)) mc_v_ = (v);                                                                                  \
        mc_store((void *)(p), sizeof *(p), MC_BITS(mc_v_), o, __func__, __LINE__);                                     \
    })
#define MC_RMW(p, op, v, o)                                                                                            \
    __extension__({                                                                                                    \
        __typeof__(*(p)) mc_v_ = (v);                                                                                  \
        (__typeof__(*(p))) mc_rmw((void *)(p), sizeof *(p), op, MC_BITS(mc_v_), o, __func__, __LINE__);                \
    })
#define MC_CAS(p, was, v, o)                                                                                           \
    __extension__({                                                                                                    \
        __typeof__(*(p)) mc_was_ = (was), mc_v_ = (v);                                                                 \
        mc_cas((void *)(p), sizeof *(p), MC_BITS(mc_was_), MC_BITS(mc_v_), o, __func__, __LINE__);                     \
    })

#define atomic_load_relaxed(p) MC_LOAD(p, MC_RELAXED)
#define atomic_load_acquire(p) MC_LOAD(p, MC_ACQUIRE)
#define atomic_load(p) MC_LOAD(p, MC_SEQ_CST)
#define atomic_store_relaxed(p, v) MC_STORE(p, v, MC_RELAXED)
#define atomic_store_release(p, v) MC_STORE(p, v, MC_RELEASE)
#define atomic_store(p, v) MC_STORE(p, v, MC_SEQ_CST)
#define atomic_xchg(p, v) MC_RMW(p, MC_XCHG, v, MC_SEQ_CST)
#define atomic_xadd(p, v) MC_RMW(p, MC_XADD, v, MC_SEQ_CST)
#define atomic_xadd_relaxed(p, v) MC_RMW(p, MC_XADD, v, MC_RELAXED)
#define atomic_fence() mc_fence(__func__, __LINE__)
#define stat_add(p, v) ((void)(*(p) += (v))) /* of one writer, and nothing depends on it: no scheduling point */
#define atomic_cas(p, was, v) MC_CAS(p, was, v, MC_SEQ_CST)
#define atomic_cas_acquire(p, was, v) MC_CAS(p, was, v, MC_ACQUIRE)
#define atomic_cas_release(p, was, v) MC_CAS(p, was, v, MC_RELEASE)
#define cpu_relax() mc_yield(__func__, __LINE__)

/* ---- the system: stands in for sys_posix.c, and for lock.c unless the model includes that ---- */
#define gmp_throw mc_throw
GMP_NORETURN void mc_throw(const char *fmt, ...) GMP_PRINTF(1, 2);
void *mc_alloc(size_t size);
void *mc_realloc(void *p, size_t size);
#define malloc mc_alloc
#define calloc(n, size) mc_alloc((n) * (size))
#define aligned_alloc(align, size) ((void)(align), mc_alloc(size))
#define realloc mc_realloc
#define free(p) ((void)(p))
#ifndef MC_REAL_LOCKS
#define mutex_lock unused_mutex_lock
#define mutex_trylock unused_mutex_trylock
#define mutex_unlock unused_mutex_unlock
#endif
#include "sys.h"
#ifndef MC_REAL_LOCKS
#undef mutex_lock
#undef mutex_trylock
#undef mutex_unlock
#define mutex_lock(mu) mc_mutex_lock(mu, __func__, __LINE__)
#define mutex_unlock(mu) mc_mutex_unlock(mu, __func__, __LINE__)
#define note_clear mc_note_clear
#define note_wakeup mc_note_wakeup
#define note_sleep mc_note_sleep
#define note_sleep_intr(n, timeout, awake, arg) ((void)(awake), (void)(arg), mc_note_sleep(n, timeout))
#endif
void mc_mutex_lock(Mutex *mu, const char *fn, int line);
void mc_mutex_unlock(Mutex *mu, const char *fn, int line);
void mc_note_clear(Note *n);
void mc_note_wakeup(Note *n);
bool mc_note_sleep(Note *n, int64_t timeout);
void mc_futexsleep(uint32_t *addr, uint32_t val, int64_t timeout);
void mc_futexwakeup(uint32_t *addr);
void mc_nap(int64_t ns);
int64_t mc_nanotime(void);
int mc_thread_start(void (*fn)(void *), void *arg, const char *name, bool signals);
#define futexsleep mc_futexsleep
#define futexwakeup mc_futexwakeup
#define nanotime mc_nanotime
#define cheaprand() 0u
#define sys_thread_start mc_thread_start
#define sys_thread_id() ((uint64_t)mc_self() + 1)
#define sys_thread_yield() mc_yield(__func__, __LINE__)
#define sys_usleep(us) mc_nap((us) * 1000)
#define sys_sigstack_install() NULL
#define sys_sigstack_free(p) ((void)(p))
/* Thread names and warnings are of no interest, and take more stack than a fibre has. */
static inline int
mc_unprinted(const void *first, ...)
{
    (void)first;
    return 0;
}
#define snprintf mc_unprinted
#define fwrite mc_unprinted

/* Thread-local variables of the core become plain ones, that mc.c saves and restores (mc_tls). */
#define GMP_TLS_DYNAMIC 1
#define __thread

/* ---- contexts and stacks of goroutines ---- */
#include "gobuf.h"
void *mc_stack_alloc(void);
void mc_switch(Gobuf *from, Gobuf *to);
#define MC_STACK ((size_t)8 << 10)
#define gobuf_switch(from, to, dies) mc_switch(from, to)
#include "stack.h"
#define stack_class_size(cls) ((void)(cls), MC_STACK)
#define stack_alloc(cls) ((void)(cls), mc_stack_alloc())
#define stack_free(cls, lo) ((void)(cls), (void)(lo))
#define stack_trim(cls, lo, keep) ((void)0)

/* ---- for models ---- */
typedef struct Model {
    const char *name;
    void (*prepare)(void);
    const char *full, *quick; /* bounds, "3/0 2/1": with 3 preemptions and no old value, then with 2 and 1 */
    struct Model *next;
} Model;
void mc_register(Model *m);
#define MODEL(name_, full_, quick_)                                                                                    \
    static void model_##name_(void);                                                                                   \
    __attribute__((constructor)) static void register_##name_(void)                                                    \
    {                                                                                                                  \
        static Model m = {#name_, model_##name_, full_, quick_, NULL};                                                 \
        mc_register(&m);                                                                                               \
    }                                                                                                                  \
    static void model_##name_(void)

int mc_thread(const char *name, void (*fn)(void *), void *arg);
int mc_self(void);
void mc_at_end(void (*fn)(void));
void mc_tls(void *word);                               /* a pointer-sized variable of which each thread has its own */
void mc_wait(bool (*cond)(void *), void *arg);         /* sleeps until cond(arg), which reads plain memory */
bool mc_timedwait(bool (*cond)(void *), void *arg, int64_t timeout); /* false: time is up */
uint32_t mc_choose(uint32_t n);                        /* 0 .. n-1: each is tried */
void mc_forbid(void *p);                               /* this variable is gone: an access by a thread fails */
void mc_may_sleep(int thread);                          /* when all is over; the others must have ended by then */
void mc_check_ended(void);                              /* that is so; checked before mc_at_end's function */
bool mc_asleep(int thread);
void mc_note(const char *fmt, ...) GMP_PRINTF(1, 2);   /* a line in the printed interleaving */
GMP_NORETURN void mc_fail(const char *fmt, ...) GMP_PRINTF(1, 2);
#define MC_CHECK(cond)                                                                                                 \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            mc_fail("%s:%d: %s", __FILE__, __LINE__, #cond);                                                           \
    } while (0)

#endif
