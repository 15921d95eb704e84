/* proc.h: what proc.c (goroutines) and threads.c (the Ms that run them) are to each other, and to sysmon.c. */
#ifndef GMP_PROC_H
#define GMP_PROC_H

#include "runtime.h"

typedef enum SwitchKind { SWITCH_PARK, SWITCH_YIELD, SWITCH_DEAD } SwitchKind;

/* Takes the P that mp runs on into the scheduler; NULL when sysmon has taken it away. */
static inline P *
p_enter(M *mp)
{
    P *pp = mp->p;
    if (GMP_LIKELY(pp != NULL)) {
        /* Acquire pairs with the release of whoever had the P before: sysmon's CAS or p_exit. */
        if (GMP_LIKELY(atomic_cas_acquire(&pp->owner, (uintptr_t)mp | P_RUNNING, (uintptr_t)mp)))
            return pp;
        mp->p = NULL;
    }
    return NULL;
}

static inline void
p_exit(M *mp, P *pp)
{
    atomic_store_release(&pp->owner, (uintptr_t)mp | P_RUNNING); /* pairs with sysmon's CAS */
}

static inline void
set_status(G *gp, GStatus from, GStatus to)
{
    /* Release: pairs with the acquire of the queue or lock through which the next owner gets gp. */
    if (GMP_UNLIKELY(atomic_load_relaxed(&gp->status) != (uint32_t)from))
        gmp_throw("goroutine %llu: status %u, expected %d before %d (waiting for %s)", (unsigned long long)gp->goid,
                  gp->status, from, to, wait_reason_name((WaitReason)gp->waitreason));
    atomic_store_release(&gp->status, (uint32_t)to);
}

/* ---- proc.c ---- */
int gcount(Sched *,
           const Class *); /* counts a new goroutine: the queues must have room for all; cls NULL: never dead */
void guncount(Sched *, const Class *);
void gfree_push(Sched *, uint32_t ci, G *const *g, uint32_t n); /* Sched.lock; dead ones of class ci */
uint64_t goid_next(P *pp);                                      /* pp: in the scheduler, or NULL */
void commit(M *mp);         /* on the stack switched to: the goroutine that was left is saved, let others have it */
G *fair_turn(Sched *, P *); /* every GLOBAL_TICK decisions: one from the global queue; runnext gives way */
G *bind_queued(Sched *, P *, G *); /* the G of a Start that came from a queue */
QStart *qstart_get(Sched *, P *);
void qstart_put(Sched *, P *, QStart *);
/* NULL: no memory for its G; it is queued again. */
static inline G *
unqueued(Sched *sched, P *pp, G *gp)
{
    return GMP_LIKELY(!is_start(gp)) ? gp : bind_queued(sched, pp, gp);
}

void yield_to_sched(void); /* to the tail of the queue, whoever else is there */

/* ---- threads.c ---- */
extern G gnobody;
void locked_goexit(M *mp, G *gp); /* gp, which was locked to mp, has ended; in the scheduler */
void wakep(Sched *sched);
void handoffp(P *pp);
bool feed(Sched *sched);      /* a thread could not be started for goroutines that wait: tries again.  sysmon only */
extern uint32_t idle_ms_kept; /* for tests: IDLE_MS_KEPT */
extern int64_t idle_m_ns;     /* for tests: IDLE_M_NS */
void wakem(M *mp);            /* that was taken off the idle list */
void pidleput(Sched *sched, P *pp);    /* Sched.lock */
P *pidleget(Sched *sched, M *owner);   /* Sched.lock */
P *pidletake(Sched *, P *, M *owner);  /* Sched.lock; one that is idle */
void midleremove(Sched *sched, M *mp); /* Sched.lock */
void go_home(Sched *sched, M *mp, G *gp);
void wake_sleeper(Sched *sched, int64_t when);
int64_t earliest_timer(Sched *sched); /* ns, or 0 */
/* The main goroutine is ready, but its thread is taken by a goroutine that does not come back: let another thread go on
 * with the main thread's stack.  sysmon only. */
bool rescue(Sched *sched);

#endif
