/* batch.pml -- measurements read from a source, many to a commit: conservation, exactly once, and what an interrupt costs.
 *
 * A source is a row of N measurements, each of one of NU users; SPIN tries every such row.  Its kind says what the
 * decision makes of it: ordinary (accepted), surprising (kept aside), or the same measurement as the row before it
 * (a duplicate).  Runs of the same source race: NR processes, and each starts again after it died.  A live caller
 * changes a user meanwhile, and an operator offers once more what was kept aside.
 *
 * Bounds: N, NU, NR, GROUP rows to a commit, CRASHES, CUTS, FAULTS, LIVE, REPLAYS.
 */
#ifndef N
#define N 3
#endif
#ifndef NU
#define NU 2
#endif
#ifndef NR
#define NR 2
#endif
#ifndef GROUP
#define GROUP 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef LIVE
#define LIVE 1
#endif
#ifndef REPLAYS
#define REPLAYS 1
#endif

#define ORDINARY   0
#define SURPRISING 1
#define SAME       2           /* as the row before it */
/* where a measurement went */
#define UNSEEN   0
#define ACCEPTED 1
#define ASIDE    2
/* a run of the source */
#define READING  0             /* it takes rows into a group */
#define WRITING  1             /* the group is handed over */
#define SINGLY   2             /* the group was given up: its rows are taken one by one */
#define ENDED_   3
#define DEAD     4

#define W_GROUP_COMMITTED  10
#define W_GROUP_CONFLICTED 11
#define W_CURSOR_MOVED     12
#define W_ROW_COMMITTED    13
#define W_ROW_KNOWN        14
#define W_DOUBT_DURABLE    15
#define W_DOUBT_NOT        16
#define W_FAILED           17
#define W_DUPLICATE        18
#define W_KEPT             19
#define W_REPLAYED         20
#define W_CUT              21
#define W_LIVE             22
#define W_ENDED            23
#define W_RUN_AGAIN        24
#define W_CRASH_IN         40 /* + READING ... ENDED_ */

#include "common.pml"

/* [input] chosen at the start, the same in every run */
byte kind[N], user[N];
/* [durable] */
byte cursor;                   /* rows of the source that were consumed */
byte accepted, aside, duplicate;   /* the source's totals, in the cursor's record */
byte where[N];                 /* a measurement's identity: where it went */
byte version[NU];
/* [volatile] */
byte at[NR];                   /* READING ... DEAD */
byte from[NR], next[NR];       /* the group is the rows from .. next - 1 */
byte to[NR];                   /* SINGLY: the rows up to here were in the group that was given up */
byte saw[NR * NU];             /* the versions that the group was made from */
/* [ghost] */
byte told;                     /* rows reported to a caller as durable */
byte told_version[NU];
byte live[NU];                 /* measurements that a live caller was told are durable */
byte given[NU];                /* versions that came from replays */
byte crashes, cuts, faults, lives, replays;
#ifdef M_NO_SYNC
byte last_from, unsynced;      /* the rows last_from .. unsynced - 1 are in the page cache alone */
#endif

#define ME  PRun->r
#define USERS_SEEN(r, u) saw[(r) * NU + (u)]
hidden byte i, n, u, acc, asi, dups;

inline CHECK() {
  /* INV-08: every row consumed is exactly one of three; the counts add up. */
  assert(accepted + aside + duplicate == cursor);
  /* INV-09, INV-05: a user's version counts what was accepted of it, once each. */
  u = 0;
  do
  :: u < NU ->
     n = live[u] + given[u]; i = 0;
     do
     :: i < cursor -> if :: user[i] == u && kind[i] == ORDINARY -> n++ :: else fi; i++
     :: else -> break
     od;
     assert(version[u] == n);
     u++
  :: else -> break
  od;
  /* INV-08: each measurement is in one place, and none before its row was consumed. */
  i = 0;
  do
  :: i < N -> assert(kind[i] == SAME || (where[i] == UNSEEN) == (i >= cursor)); i++
  :: else -> break
  od;
  /* INV-02: what was reported is durable. */
  assert(told <= cursor);
  i = 0; n = 0; u = 0; acc = 0; asi = 0; dups = 0
}

inline LOOK_AT(r) {            /* a group is made from the heads as they are when its first row is taken */
  u = 0;
  do :: u < NU -> saw[r * NU + u] = version[u]; u++ :: else -> break od
}

inline TAKE(r) {               /* the next row goes into the group; nothing is durable */
  if :: from[r] == next[r] -> LOOK_AT(r) :: else fi;
  next[r]++
}

/* Part of one transaction: rows lo .. hi - 1 and, with them, the cursor. */
inline APPLY(lo, hi) {
  i = lo; acc = 0; asi = 0; dups = 0;
  do
  :: i < hi ->
     if
     :: kind[i] == ORDINARY -> where[i] = ACCEPTED; version[user[i]]++; acc++
     :: kind[i] == SURPRISING -> where[i] = ASIDE; asi++; SAW(W_KEPT)
     :: kind[i] == SAME ->
#ifdef M_NO_IDENTITY
        version[user[i]]++; acc++
#else
        dups++; SAW(W_DUPLICATE)
#endif
     fi;
     i++
  :: else -> break
  od;
#ifdef M_NO_SYNC
  last_from = lo; unsynced = hi;
#endif
#ifndef M_CURSOR_OUTSIDE
  cursor = hi; accepted = accepted + acc; aside = aside + asi; duplicate = duplicate + dups;
#endif
  skip
}

#ifdef M_NO_CAS
#define CHANGED(r) (false)
#else
#define CHANGED(r) (cursor != from[r] || saw[r * NU] != version[0] || saw[r * NU + NU - 1] != version[NU - 1])
#endif

inline GIVE_UP(r) { to[r] = next[r]; next[r] = from[r]; at[r] = SINGLY }
inline TELL(hi) { if :: told < hi -> told = hi :: else fi }

inline COMMIT(r) {             /* one transaction */
  if
  :: CHANGED(r) -> if :: cursor != from[r] -> SAW(W_CURSOR_MOVED) :: else -> SAW(W_GROUP_CONFLICTED) fi; GIVE_UP(r)
  :: else -> APPLY(from[r], next[r]); TELL(next[r]); from[r] = next[r]; at[r] = READING; SAW(W_GROUP_COMMITTED)
  fi
}

inline ONE(r) {                /* one row of a group that was given up: look at the cursor again, then one transaction */
  if
#ifndef M_CURSOR_NOT_READ_AGAIN
  :: next[r] < cursor -> SAW(W_ROW_KNOWN)
  :: else ->
#else
  :: true ->
#endif
     APPLY(next[r], next[r] + 1); SAW(W_ROW_COMMITTED)
  fi;
  TELL(next[r] + 1);
  next[r]++; from[r] = next[r];
  if :: next[r] == to[r] -> to[r] = 0; at[r] = READING :: else fi
}

inline START(r) {              /* a run skips what the cursor says was consumed */
  from[r] = cursor; next[r] = cursor; to[r] = 0; at[r] = READING
}

inline DIE(r) {
  u = 0;
  do :: u < NU -> saw[r * NU + u] = 0; u++ :: else -> break od;
  from[r] = 0; next[r] = 0; to[r] = 0; at[r] = DEAD
}

proctype Run(byte r) {
end:
  do
  :: d_step { at[r] == READING && next[r] < N && next[r] - from[r] < GROUP && cursor <= from[r] -> TAKE(r); CHECK() }
  :: d_step { at[r] == READING && next[r] == from[r] && cursor > from[r] -> START(r); SAW(W_CURSOR_MOVED); CHECK() }
  :: d_step { at[r] == READING && next[r] > from[r] ->
              at[r] = WRITING;
#ifdef M_EARLY_ACK
              TELL(next[r]);
#endif
              CHECK() }
  :: d_step { at[r] == WRITING -> COMMIT(r); CHECK() }
  :: d_step { at[r] == SINGLY -> ONE(r); CHECK() }
  :: d_step { at[r] == READING && next[r] == N && from[r] == N -> at[r] = ENDED_; SAW(W_ENDED); CHECK() }
  :: d_step { at[r] == DEAD -> START(r); SAW(W_RUN_AGAIN); CHECK() }
  :: d_step { crashes < CRASHES && at[r] != DEAD ->
              c_code { seen[W_CRASH_IN + now.at[ME]]++; }; crashes++; DIE(r); CHECK() }
  :: d_step { faults < FAULTS && at[r] == WRITING ->          /* a full disk: nothing was written */
              faults++; GIVE_UP(r); SAW(W_FAILED); CHECK() }
  :: d_step { faults < FAULTS && at[r] == WRITING && !CHANGED(r) ->    /* the commit raised, and was durable all the same */
              faults++; APPLY(from[r], next[r]); GIVE_UP(r); SAW(W_DOUBT_DURABLE); CHECK() }
  :: d_step { faults < FAULTS && at[r] == WRITING -> faults++; GIVE_UP(r); SAW(W_DOUBT_NOT); CHECK() }
#ifdef M_CURSOR_OUTSIDE
  :: d_step { at[r] == READING && from[r] > cursor ->
              i = cursor; do :: i < from[r] -> if :: kind[i] == ORDINARY -> accepted++ :: kind[i] == SURPRISING -> aside++ :: else -> duplicate++ fi; i++
              :: else -> break od; cursor = from[r]; CHECK() }
#endif
  od
}

proctype World() {
  byte k;
end:
  do
  :: d_step { lives < LIVE -> lives++; version[0]++; live[0]++; SAW(W_LIVE); CHECK() }
  :: d_step { replays < REPLAYS && where[0] == ASIDE ->       /* one transaction: out of what is kept, and decided again */
              replays++;
#ifdef M_REPLAY_IN_TWO
              where[0] = UNSEEN; aside--; CHECK();
#endif
              where[0] = ACCEPTED; version[user[0]]++; given[user[0]]++; SAW(W_REPLAYED); CHECK() }
  :: d_step { cuts < CUTS ->                                   /* the power fails */
              cuts++;
#ifdef M_NO_SYNC
              if
              :: unsynced != 0 ->
                 i = last_from; 
                 do
                 :: i < unsynced ->
                    if
                    :: kind[i] == ORDINARY -> where[i] = UNSEEN; version[user[i]]--; accepted--
                    :: kind[i] == SURPRISING -> where[i] = UNSEEN; aside--
                    :: else -> duplicate--
                    fi;
                    i++
                 :: else -> break
                 od;
                 cursor = last_from; unsynced = 0
              :: else
              fi;
#endif
              k = 0; do :: k < NR -> DIE(k); k++ :: else -> break od; k = 0; SAW(W_CUT); CHECK() }
  od
}

init {
  byte k;
  atomic {
    c_code { atexit(tell_seen); };
    do                          /* every source there is */
    :: k < N ->
       if :: kind[k] = ORDINARY :: kind[k] = SURPRISING :: k > 0 -> kind[k] = SAME fi;
       if :: k > 0 && kind[k] == SAME -> user[k] = user[k - 1] :: else -> if :: user[k] = 0 :: user[k] = NU - 1 fi fi;
       k++
    :: else -> break
    od;
    k = 0;
    do :: k < NR -> run Run(k); k++ :: else -> break od;
    run World(); k = 0
  }
}

#ifdef LTL_CONSUMED    /* INV-12: whatever dies, the source is consumed whole */
ltl the_source_is_consumed { <> (cursor == N) }
#endif
