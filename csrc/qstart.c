/* qstart.c: native goroutines that wait behind many others, without a G.
 *
 * In a burst of spawns each goroutine would touch a slot of its own, ten cache lines that nothing has fetched, long before it
 * runs.  Instead the queue holds a QStart, and the goroutine gets the G that ended last when it is taken from the queue:
 * 100 ns instead of 550 for 100,000 goroutines that only end.
 *   1. newproc_class fills one in when its P has LONG_QUEUE goroutines queued.  The class must need no create.
 *   2. Who takes it from a queue binds it (bind_queued): it is nobody else's by then, so unlike the Starts of the python set,
 *      which others may want to join, it needs no lock.
 *   3. QStarts are made in chunks, each of which makes room in the global queue for all of it, and are never freed.
 * Nothing is promised: if memory for a G is refused when its turn comes, the goroutine goes back to the queue.
 */
#include "proc.h"

#define CHUNK 64
#define KEEP (2 * CHUNK) /* free ones a P keeps */

static QStart *
chunk(Sched *sched)
{
    QStart *qs = sys_aligned_alloc(GMP_CACHELINE, CHUNK * sizeof *qs);
    if (qs == NULL)
        return NULL;
    mutex_lock(&sched->lock);
    int code = globrunqreserve(sched, sched->ngs + CHUNK);
    if (code == GMP_OK)
        sched->ngs += CHUNK;
    mutex_unlock(&sched->lock);
    if (code != GMP_OK) {
        sys_free(qs);
        return NULL;
    }
    for (int i = 0; i < CHUNK; i++)
        qs[i].next = i + 1 < CHUNK ? &qs[i + 1] : NULL;
    return qs;
}

typedef struct Chunk {
    Sched *sched;
    QStart *qs;
} Chunk;

static void
chunk_call(void *arg)
{
    Chunk *c = arg;
    c->qs = chunk(c->sched);
}

static GMP_NOINLINE bool
refill(Sched *sched, P *pp)
{
    QStart *qs = NULL;
    if (atomic_load_relaxed(&sched->qstarts) != NULL) {
        mutex_lock(&sched->lock);
        qs = sched->qstarts;
        if (qs != NULL)
            atomic_store_relaxed(&sched->qstarts, qs->batch);
        mutex_unlock(&sched->lock);
    }
    if (qs == NULL) {
        Chunk c = {sched, NULL};
        systemstack(chunk_call, &c);
        qs = c.qs;
    }
    pp->qstarts = qs;
    pp->nqstarts = qs != NULL ? CHUNK : 0;
    return qs != NULL;
}

/* In the scheduler.  NULL when memory is refused. */
QStart *
qstart_get(Sched *sched, P *pp)
{
    if (GMP_UNLIKELY(pp->qstarts == NULL) && !refill(sched, pp))
        return NULL;
    QStart *qs = pp->qstarts;
    pp->qstarts = qs->next;
    pp->nqstarts--;
    return qs;
}

/* In the scheduler.  Those that are too many go to the set, in lists of CHUNK. */
void
qstart_put(Sched *sched, P *pp, QStart *qs)
{
    qs->next = pp->qstarts;
    pp->qstarts = qs;
    if (GMP_LIKELY(++pp->nqstarts < KEEP))
        return;
    QStart *last = qs;
    for (int i = 1; i < CHUNK; i++)
        last = last->next;
    pp->qstarts = last->next;
    pp->nqstarts -= CHUNK;
    last->next = NULL;
    mutex_lock(&sched->lock);
    qs->batch = sched->qstarts;
    atomic_store_relaxed(&sched->qstarts, qs);
    mutex_unlock(&sched->lock);
}
