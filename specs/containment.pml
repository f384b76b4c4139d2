/* containment.pml -- several users under one global breaker: what one user's failures may do to another's resets.
 *
 * Every user has a process of its own and a breaker of its own.  The attempts are those of reset.pml, with all that
 * concerns versions and marks left out.  A death is settled when the store is opened again, and by whoever asks while
 * somebody else holds the global breaker's probe: that may be the dead one.
 *
 * Bounds: NU users, NA attempts each (the last one NB), CRASHES (one at most: then one settles all that was left), FORCES; THRESH failures open a user's breaker, USERS distinct users that
 * failed open the global one.
 */
#ifndef NU
#define NU 3
#endif
#ifndef NA
#define NA 2
#endif
#ifndef NB
#define NB NA                  /* attempts of the last user */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef FORCES
#define FORCES 1
#endif
#ifndef THRESH
#define THRESH 1
#endif
#ifndef USERS
#define USERS 2
#endif
#define A (NU * NA)
#define LEASING_G 13           /* the user's breaker admits; the global one has cooled and wants a probe */

#define W_ADMITTED          10
#define W_REFUSED_USER      11
#define W_REFUSED_GLOBAL    12
#define W_BOTH_PROBES       13
#define W_PROBE_WASTED      14
#define W_LEASE_G_LOST      16
#define W_COMMITTED         17
#define W_NOT_COUNTED       18
#define W_BREAKER_MOVED     19
#define W_FAILED            20
#define W_GLOBAL_OPENS      21
#define W_GLOBAL_CLOSES     22
#define W_GLOBAL_REOPENS    23
#define W_SETTLED           24
#define W_FORCED            25
#define W_CRASH_IN          40 /* + phase */

#include "common.pml"

/* [durable] */
Breaker b[NU];
Breaker g;                     /* the global breaker */
bit     failing[NU];           /* users in its window */
/* [volatile] */
byte    phase[NU];
num     used[NU], gen[NU], ggen[NU];
bit     wants[NU];             /* it is to be the global breaker's probe */
/* [marks] */
byte    orphan[NU];            /* attempt + 1 that a dead process left */
/* [ghost] */
bit     failed[NU];            /* the user had a failing reset since the global breaker was last closed or opened */
bit     ever[NU];              /* it had one at any time, or its process died */
byte    crashes, forces;

#define CUR(u) (u * NA + used[u] - 1)
#define ME     PUser->u
hidden int i, n;
hidden byte was_mode, was_fails;
hidden num  was_gen;

inline CHECK() {
  /* INV-07: half-open has at most one probe, no other mode has any. */
  assert(g.mode == HALF || g.probe == 0);
  i = 0;
  do
  :: i < NU ->
     assert(b[i].mode == HALF || b[i].probe == 0);
     /* INV-11: a user's breaker is moved by attempts of that user alone. */
     assert(b[i].probe == 0 || (b[i].probe - 1) / NA == i);
     assert(b[i].mode != OPEN || ever[i]);
     i++
  :: else -> break
  od;
  i = 0; n = 0; was_mode = 0; was_fails = 0; was_gen = 0
}

#ifdef M_NEVER_ADMITS
#define SHUTS(br)  (br.mode == FORCED_OPEN || br.mode == OPEN || (br.mode == HALF && br.probe != 0))
#define PROBES(br) (br.mode == HALF && br.probe == 0)
#else
#define SHUTS(br)  (br.mode == FORCED_OPEN || (br.mode == OPEN && !br.cooled) || (br.mode == HALF && br.probe != 0))
#define PROBES(br) ((br.mode == OPEN && br.cooled) || (br.mode == HALF && br.probe == 0))
#endif

inline ASK(u) {                /* both breakers are asked before any probe is leased: no transaction */
  if
  :: SHUTS(b[u]) -> phase[u] = REFUSED; SAW(W_REFUSED_USER)
  :: !SHUTS(b[u]) && SHUTS(g) -> phase[u] = REFUSED; SAW(W_REFUSED_GLOBAL)
  :: else ->
     gen[u] = b[u].gen; ggen[u] = g.gen; wants[u] = PROBES(g);
     if
     :: PROBES(b[u]) -> phase[u] = LEASING
     :: else -> if :: wants[u] -> phase[u] = LEASING_G :: else -> phase[u] = SNAPSHOTTED; SAW(W_ADMITTED) fi
     fi
  fi
}
inline LEASE(u) {              /* one transaction on the user's breaker, which nobody else moves here */
  assert(gen[u] == b[u].gen);
  B_LEASED(b[u], CUR(u)); gen[u] = b[u].gen;
  if :: wants[u] -> phase[u] = LEASING_G :: else -> phase[u] = SNAPSHOTTED fi
}
inline LEASE_GLOBAL(u) {       /* one transaction on the global breaker, compare-and-set */
  if
  :: ggen[u] != g.gen ->       /* somebody was faster: the probe of the user's own breaker is given back in a transaction */
#ifndef M_PROBE_WASTED
     if :: b[u].probe == CUR(u) + 1 -> B_RELEASED(b[u], CUR(u)); SAW(W_PROBE_WASTED) :: else fi;
#endif
     phase[u] = REFUSED; SAW(W_LEASE_G_LOST)
  :: else ->
     B_LEASED(g, CUR(u)); ggen[u] = g.gen; phase[u] = SNAPSHOTTED;
     if :: b[u].probe == CUR(u) + 1 -> SAW(W_BOTH_PROBES) :: else fi
  fi
}

/* The global breaker counts distinct users; GLOBAL_GOOD and GLOBAL_BAD are `settle_global`. */
inline GLOBAL_GOOD(u) {
  if
  :: ggen[u] != g.gen || g.mode == FORCED_CLOSED -> SAW(W_NOT_COUNTED)
  :: else -> if :: g.mode == HALF && g.probe == CUR(u) + 1 -> B_CLOSED(g); CALM(); SAW(W_GLOBAL_CLOSES) :: else fi
  fi
}
inline CALM() { i = 0; do :: i < NU -> failing[i] = 0; failed[i] = 0; i++ :: else -> break od }
inline GLOBAL_BAD(u) {
  failed[u] = 1;
  if
  :: ggen[u] != g.gen || g.mode == FORCED_CLOSED -> SAW(W_NOT_COUNTED)
  :: else ->
     if
     :: g.mode == HALF && g.probe == CUR(u) + 1 -> B_OPENED(g); SAW(W_GLOBAL_REOPENS)
     :: g.mode != CLOSED && !(g.mode == HALF && g.probe == CUR(u) + 1)
     :: g.mode == CLOSED ->
#ifdef M_COUNT_FAILURES
        g.fails++;
        if
        :: g.fails >= USERS -> n = 0; FAILED_USERS();
#else
        failing[u] = 1; i = 0; n = 0;
        do :: i < NU -> n = n + failing[i]; i++ :: else -> break od;
        if
        :: n >= USERS -> n = 0; FAILED_USERS();
#endif
           /* INV-11: the global breaker opens on distinct users. */
           assert(n >= USERS);
           B_OPENED(g); CALM(); SAW(W_GLOBAL_OPENS)
        :: else
        fi
     fi
  fi
}
inline FAILED_USERS() { i = 0; do :: i < NU -> n = n + failed[i]; i++ :: else -> break od }

inline COMMIT(u) {             /* one transaction */
  if
  :: gen[u] != b[u].gen || b[u].mode == OPEN || b[u].mode == FORCED_OPEN || g.mode == OPEN || g.mode == FORCED_OPEN ->
     B_RELEASED(b[u], CUR(u)); B_RELEASED(g, CUR(u)); phase[u] = ROLLEDBACK; SAW(W_BREAKER_MOVED)
  :: else ->
     B_SUCCESS(b[u], CUR(u), gen[u]); GLOBAL_GOOD(u); phase[u] = COMMITTED; SAW(W_COMMITTED)
  fi
}
inline FAIL(u) {               /* one transaction */
  ever[u] = 1;
#ifdef M_ONE_BREAKER
  i = 0;
  do :: i < NU -> B_FAILURE(b[i], CUR(u), b[i].gen, THRESH); i++ :: else -> break od;
#else
  B_FAILURE(b[u], CUR(u), gen[u], THRESH);
#endif
  GLOBAL_BAD(u); phase[u] = ROLLEDBACK; SAW(W_FAILED)
}
inline SETTLE(q) {             /* one transaction: the probes of a dead process's attempt are given back */
#ifndef M_NO_RECOVERY
  B_RELEASED(b[q], orphan[q] - 1); B_RELEASED(g, orphan[q] - 1);
#endif
  orphan[q] = 0; SAW(W_SETTLED)
}

#define OVER(u) (phase[u] == COMMITTED || phase[u] == ROLLEDBACK || phase[u] == REFUSED)
#define IN(u)   (phase[u] != IDLE && phase[u] != DOWN && !OVER(u))
/* the user, + 1, whose process died in an attempt that is not settled yet */
#define LEFT    (orphan[0] != 0 -> 1 : (orphan[NU / 2] != 0 -> NU / 2 + 1 : (orphan[NU - 1] != 0 -> NU : 0)))

#ifdef EMIT                    /* the library reads the clock when an attempt begins, and asks by it later */
#define NOBODY_ASKS (phase[0] != ASKING && phase[NU / 2] != ASKING && phase[NU - 1] != ASKING)
#else
#define NOBODY_ASKS (true)
#endif

proctype User(byte u) {
end:
  do
  :: d_step { phase[u] == IDLE && used[u] < (u == NU - 1 -> NB : NA) && MAY("begin", ME) -> PRE; used[u]++; phase[u] = ASKING; POST("begin", ME) }
  :: d_step { phase[u] == ASKING && !(g.probe != 0 && LEFT) && MAY("ask", ME) -> PRE; ASK(u); POST("ask", ME) }
  :: d_step { phase[u] == LEASING && MAY("lease", ME) -> PRE; LEASE(u); POST("lease", ME) }
  :: d_step { phase[u] == LEASING_G && MAY("lease global", ME) -> PRE; LEASE_GLOBAL(u); POST("lease global", ME) }
  :: d_step { phase[u] == SNAPSHOTTED && MAY("offer", ME) -> PRE; phase[u] = OFFERED; POST("offer", ME) }
  :: d_step { phase[u] == OFFERED && MAY("commit", ME) -> PRE; COMMIT(u); POST("commit", ME) }
  :: d_step { phase[u] == SNAPSHOTTED && MAY("fail", ME) -> PRE; FAIL(u); POST("fail", ME) }
  :: d_step { OVER(u) && MAY("finish", ME) -> PRE; phase[u] = IDLE; gen[u] = 0; ggen[u] = 0; wants[u] = 0; POST("finish", ME) }
  :: d_step { crashes < CRASHES && phase[u] != DOWN && MAY("crash", ME) ->
              PRE; c_code { seen[W_CRASH_IN + now.phase[ME]]++; }; crashes++; ever[u] = 1;
              if :: IN(u) -> orphan[u] = CUR(u) + 1 :: else fi;
              phase[u] = DOWN; gen[u] = 0; ggen[u] = 0; wants[u] = 0; POST("crash", ME) }
  :: d_step { phase[u] == DOWN && MAY("reopen", ME) ->     /* an opening settles what it finds */
              PRE; if :: orphan[u] -> SETTLE(u) :: else fi; phase[u] = IDLE; POST("reopen", ME) }
  :: d_step { phase[u] == ASKING && g.probe != 0 && LEFT && MAY("settle", ME) -> PRE; SETTLE(LEFT - 1); POST("settle", ME) }
  od
}

proctype World() {
  byte k;
end:
  do
#ifndef M_NO_COOLDOWN
  :: d_step { g.mode == OPEN && !g.cooled && NOBODY_ASKS && MAY("cool", 0) -> PRE; g.cooled = 1; POST("cool", 0) }
#endif
  :: d_step { b[0].mode == OPEN && !b[0].cooled && NOBODY_ASKS && MAY("cool 0", 0) -> PRE; b[0].cooled = 1; POST("cool 0", 0) }
  :: d_step { b[NU - 1].mode == OPEN && !b[NU - 1].cooled && NOBODY_ASKS && MAY("cool last", 0) ->
              PRE; b[NU - 1].cooled = 1; POST("cool last", 0) }
  :: d_step { forces < FORCES && MAY("force open", 0) -> PRE; forces++; B_FORCED(g, FORCED_OPEN); CALM(); SAW(W_FORCED); POST("force open", 0) }
  :: d_step { g.mode == FORCED_OPEN && MAY("release", 0) -> PRE; B_CLOSED(g); CALM(); POST("release", 0) }
  od
}

init {
  byte k;
  atomic {
    c_code { atexit(tell_seen); };
    do :: k < NU -> run User(k); k++ :: else -> break od;
    run World(); k = 0
  }
}

#ifdef LTL_GLOBAL_PROBE   /* INV-12: a probe of the global breaker gives its slot back, whoever held it */
ltl the_global_probe_is_released { [] (g.probe != 0 -> <> (g.probe == 0)) }
#endif
#ifdef LTL_USER_PROBE
ltl a_users_probe_is_released { [] (b[0].probe != 0 -> <> (b[0].probe == 0)) }
#endif
#ifdef LTL_GLOBAL_COOLS
ltl the_global_breaker_cools { [] (g.mode == OPEN -> <> (g.mode != OPEN || g.cooled)) }
#endif
#ifdef LTL_GLOBAL_ADMITS  /* INV-12: the same of the global breaker, where one asks whom the user's own admits */
#define FREE_PROBE ((g.mode == OPEN && g.cooled) || (g.mode == HALF && g.probe == 0))
ltl the_global_breaker_admits_again { [] ((FREE_PROBE && phase[0] == ASKING && b[0].mode == CLOSED) -> <> (g.probe != 0)) }
#endif
