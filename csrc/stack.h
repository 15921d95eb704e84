/* stack.h: memory for goroutines: slots carved from large slabs.
 *
 * A slot is one goroutine's whole memory: [guard | C stack growing down ... | what the class puts at the top | G ].
 * Slabs are reserved without committing, so an untouched slot costs address space only, and a goroutine that has used
 * one page keeps one page.  A slab is one VMA for thousands of slots, whatever guards it has (MADV_GUARD_INSTALL), or
 * as many as the map count allows (mprotect).  Freed slots are kept for reuse; slabs are never unmapped.
 */
#ifndef GMP_STACK_H
#define GMP_STACK_H

#include "gobuf.h"
#include "sys.h"

typedef enum StackClass {
    STACK_2K,    /* 2 KiB, two to a page, no guard page: a canary at the low end, checked at each switch */
    STACK_64K,   /* 64 KiB reserved, grown by page faults, guarded */
    STACK_256K,  /* the same with 256 KiB: the default, and what python goroutines use up to 3.10's depth */
    STACK_512K,  /* the same with 512 KiB */
    STACK_CLASSES
} StackClass;

size_t stack_class_size(StackClass cls);
/* Low address of a slot; its contents are whatever the last user left (a never-used slot is zero).  NULL when refused.
 * Thread-safe; takes one of stack.c's own locks, calls nothing outside sys.h. */
void *stack_alloc(StackClass cls);
void stack_free(StackClass cls, void *lo);
/* Give back every page of the slot but the topmost keep bytes (rounded up to pages), if more than that was touched below
 * the watermark sp_low; called when a goroutine that went deep dies. */
void stack_trim(StackClass cls, void *lo, size_t keep);

/* Number of slots ever carved of a class, and the low address of the i-th (0 <= i < count): how all goroutines are listed.
 * Async-signal-safe, lock-free; slots are never uncarved. */
size_t stack_count(StackClass cls);
void *stack_at(StackClass cls, size_t i);
/* Whether addr lies in a slab, and in which slot.  Async-signal-safe. */
bool stack_find(const void *addr, StackClass *cls, void **lo, bool *in_guard);

typedef struct StackStats {
    size_t slabs, reserved_bytes, carved, in_use, free, guarded, unguarded;
} StackStats;
void stack_stats(StackClass cls, StackStats *out);
/* "madvise", "mprotect" or "none", for the self-check. */
const char *stack_guard_name(void);

#endif
